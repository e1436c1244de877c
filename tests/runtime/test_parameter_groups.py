"""Optimizers that do not take the parameters of synthesizers, and the remedy."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dni_fx
from dni_fx import DniFxError, Training
from dni_fx.synthesizers import Activation

X = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
OWN = Training(optimizer=torch.optim.AdamW)


def matrices() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8, bias=False), nn.Tanh(), nn.Linear(8, 3, bias=False))


def cut(factory: Any, step: str, **options: Any) -> tuple[Any, torch.optim.Optimizer]:
    model = matrices()
    optimizer = factory if step == "segment" else factory(model.parameters())
    net: Any = dni_fx.transform(model, X, cuts=["1"], optimizer=optimizer, step=step, **options).train()
    return net, net.dni.optimizer if step == "segment" else optimizer


class Muon(torch.optim.SGD):
    """As from another package: it fails at its first step."""


@pytest.mark.parametrize("step", ["loop", "segment"])
@pytest.mark.parametrize("kind", [torch.optim.Muon, Muon, torch.optim.SparseAdam])
def test_an_optimizer_that_does_not_take_synthesizers(kind: Any, step: str) -> None:
    """They have AdamW, without a word."""
    net, optimizer = cut(kind, step)
    of_model = [p for name, p in net.named_parameters() if not name.startswith("dni.")]
    own = net.dni.optimizer if step == "loop" else None
    if own is not None:
        assert type(own) is torch.optim.AdamW and len(optimizer.param_groups[0]["params"]) == len(of_model)
    if kind is torch.optim.SparseAdam:  # it takes no dense gradient of the model's either
        return
    before = [p.detach().clone() for p in net.parameters()]
    for _ in range(3):
        optimizer.zero_grad()
        net(X).square().mean().backward()
        optimizer.step()
    assert not any(map(torch.equal, before, net.parameters()))


@pytest.mark.parametrize("step", ["loop", "segment"])
def test_synthesizers_with_an_optimizer_of_their_own(step: str) -> None:
    net, optimizer = cut(torch.optim.Muon, step, training=OWN)
    before = [p.detach().clone() for p in net.parameters()]
    for _ in range(3):
        optimizer.zero_grad()
        net(X).square().mean().backward()
        optimizer.step()
    assert not any(torch.equal(p, q) for p, q in zip(before, net.parameters(), strict=True))


@pytest.mark.parametrize("step", ["loop", "segment"])
def test_an_optimizer_of_their_own_that_refuses_them(step: str) -> None:
    with pytest.raises(DniFxError, match=r"of the synthesizers: Muon only supports 2D .* of their own"):
        cut(torch.optim.SGD, step, training=Training(optimizer=torch.optim.Muon))


def test_a_segment_whose_parameters_are_refused() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    with pytest.raises(DniFxError, match="of the parameters of a segment: Muon only supports 2D"):
        dni_fx.transform(model, X, cuts=["1"], optimizer=torch.optim.Muon, step="segment", training=OWN)


class Linear(nn.Linear):
    """A synthesizer without biases."""

    def __init__(self, activation: Activation, context_size: int) -> None:
        super().__init__(activation.features, activation.features, bias=False)

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return super().forward(activation)


def test_synthesizers_of_matrices_alone() -> None:
    net, optimizer = cut(torch.optim.Muon, "loop", synthesizer=Linear)
    net(X).square().mean().backward()
    optimizer.step()
    assert len(optimizer.param_groups) == 2
