"""What a synthesizer costs, and synthesizers that cannot be priced."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dni_fx
from dni_fx.cost.synthesizers import Price, _price
from dni_fx.settings import Settings
from dni_fx.synthesizers.base import Activation, Synthesizer
from dni_fx.synthesizers.feedforward import Conv, Linear


def price(activation: Activation, factory: Any, context_size: int = 0) -> Price:
    found = _price(activation, factory, Settings(context_size=context_size or None))
    assert isinstance(found, Price)
    return found


def test_prices() -> None:
    meta_device = torch.device("meta")
    linear = price(Activation((4, 5, 8), torch.float32, meta_device, 2), Linear)
    assert linear.parameter_bytes == 4 * (8 * 8 + 8)
    assert linear.time == 2 * (2 * 20 * 8 * 8)  # forward, and the weight's gradient: the activation is detached
    assert (linear.bytes, linear.kept) == (4 * 160, 0)
    labels = price(Activation((4, 5, 8), torch.float32, meta_device, 2), Linear, 3)
    assert labels.parameter_bytes == 4 * (11 * 8 + 8)
    assert labels.kept == 4 * 20 * 11  # the activation with the labels beside it
    conv = price(Activation((4, 8, 6, 6), torch.float16, meta_device, 1), Conv)
    assert conv.parameter_bytes == 2 * (8 * 8 * 9 + 8)
    assert conv.time == 2 * (2 * 4 * 36 * 9 * 8 * 8)


def test_what_cannot_be_has_a_reason() -> None:
    reason = _price(Activation((4, 8), torch.float32, torch.device("meta"), 1), Conv, Settings())
    assert isinstance(reason, str) and "a conv synthesizer needs a map" in reason


class Wrong(Synthesizer):
    def __init__(self, activation: Activation, context_size: int = 0) -> None:
        super().__init__(activation, context_size)
        self.net = nn.Linear(3, 3)

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
        return self.net(activation)


class Narrow(Wrong):
    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
        return activation[:, :3]


def test_a_synthesizer_of_the_wrong_shape_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(dni_fx.DniFxError, match=r"Narrow returned \[3, 3\] for an activation of shape \[3, 8\]"):
        dni_fx.plan(model, torch.rand(3, 4), synthesizer=Narrow)


@pytest.mark.parametrize("cuts", ["auto", "1"])
def test_a_synthesizer_that_does_not_run_is_named(cuts: str) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(dni_fx.DniFxError, match=r"synthesizer Wrong does not run on a tensor of shape \[3, 8\]: mat1"):
        dni_fx.plan(model, torch.rand(3, 4), synthesizer=Wrong, cuts=cuts)


def test_a_synthesizer_that_looks_at_values_is_run_on_zeros() -> None:
    class Looks(Synthesizer):
        def __init__(self, activation: Activation, context_size: int = 0) -> None:
            super().__init__(activation, context_size)
            self.net = nn.Linear(self.features, self.features)

        def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
            return self.net(activation) if float(activation.sum()) < 1e9 else activation

    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x, before = torch.rand(3, 4), torch.get_rng_state()
    plan = dni_fx.plan(model, x, cuts=2, synthesizer=Looks)
    assert plan.segments[0].synthesizers > 0
    assert before.equal(torch.get_rng_state())
