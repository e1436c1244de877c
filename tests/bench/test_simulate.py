"""A simulated step takes the memory of a real one, and none while it runs."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import dni_fx
from dni_fx.bench import mean_square, simulate, training_peak
from dni_fx.model import Inputs


def layers(depth: int = 8, width: int = 64) -> nn.Module:
    return nn.Sequential(*[layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.Tanh())])


def real_peak(net: Any, x: Tensor, target: Tensor | None = None) -> int:
    optimizer = torch.optim.Adam(net.parameters())

    def step() -> None:
        optimizer.zero_grad()
        output = net.train()(x, **{"dni_context": target} if hasattr(net, "dni") and target is not None else {})
        loss = mean_square(output) if target is None else nn.functional.mse_loss(output, target)
        del output
        loss.backward()
        optimizer.step()

    step()
    step()
    net.zero_grad()
    return training_peak(step, net.parameters()).peak


@pytest.mark.parametrize("options", [{"synthesizer": "linear"}, {"loss": "mse_loss"}], ids=str)
def test_the_memory_of_a_real_step(options: dict[str, Any]) -> None:
    x, loss = torch.rand(256, 64), options.get("loss")
    model = layers()
    net = dni_fx.transform(model, x, cuts=["3", "7"], **options)
    found = simulate(model, net, Inputs((x,)), loss)
    target = None if loss is None else torch.zeros(256, 64)
    # Autograd frees a temporary of the loss earlier in fake steps; of these small nets, that is a tenth.
    assert found.backprop == pytest.approx(real_peak(layers(), x, target), rel=0.0 if loss is None else 0.1)
    assert found.cut == pytest.approx(real_peak(net, x, target), rel=0.1)


def test_a_model_that_fits_into_no_memory() -> None:
    with FakeTensorMode():
        x = torch.zeros(64, 50_000)
        model = layers(4, 50_000)  # 40 GB
        net = dni_fx.transform(model, x, cuts=2)
        found = simulate(model, net, Inputs((x,)))
    assert found.backprop > 40e9 and found.cut > 40e9


class Looks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = layers(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return y if float(y.detach().sum()) > 1e9 else 2 * y


def test_a_step_that_looks_at_values() -> None:
    x, model = torch.rand(4, 8), Looks()
    net = dni_fx.transform(model, x, cuts=["layers.1"], frontend="modules")
    with pytest.raises(dni_fx.DniFxError, match="does not run on fake tensors"):
        simulate(model, net, Inputs((x,)))


def test_labels() -> None:
    x, model = torch.rand(16, 8), layers(4, 8)
    net = dni_fx.transform(model, x, cuts=2, classes=3)
    assert simulate(model, net, Inputs((x,))).cut > 0
