"""A perceptron with one cut, and what its synthesizer predicts and learns from."""

from typing import Any

import torch
from nets import three_layers
from torch import Tensor, nn

import dni_fx
from dni_fx.synthesizers.base import Activation, Synthesizer

X = torch.randn(16, 8)
WITH = ["none", "backward"]


def transformed(unlock: str = "backward", **options: Any) -> Any:
    return dni_fx.transform(three_layers(), X, cuts=["1"], unlock=unlock, **options)


def gradients(net: nn.Module) -> dict[str, Tensor]:
    net.zero_grad()
    net(X).square().mean().backward()
    return {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}


def target_of(net: nn.Module) -> Tensor:
    """The gradient of each sample's own loss at the cut, by backprop."""
    model = three_layers()
    model.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("dni.")})
    h = model[:2](X).detach().requires_grad_()
    model[2:](h).square().mean().backward()
    assert h.grad is not None
    return h.grad * len(X)


def synthesizer_of(net: Any) -> nn.Module:
    (made,) = net.dni.synthesizers.values()
    return made


class Half(Synthesizer):
    """Says a constant; what comes back for it is kept."""

    def __init__(self, activation: Activation, context_size: int = 0) -> None:
        super().__init__(activation, context_size)
        self.value = nn.Parameter(torch.full(activation.shape, 0.5))

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
        return self.value * 1.0
