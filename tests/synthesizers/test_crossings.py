"""One factory for each crossing of a plan, in depth and in time."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dni_fx
from dni_fx import DniFxError
from dni_fx.plans import Plan, crossings
from dni_fx.synthesizers import REGISTRY, Activation, activation_of, factories, make_synthesizer


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.below, self.cell, self.above = nn.Linear(4, 5), nn.GRUCell(5, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = self.cell(torch.tanh(self.below(x)), state)
        return self.above(state), state


@pytest.fixture(scope="module")
def plan() -> Plan:
    inputs = (torch.rand(3, 4), torch.zeros(3, 6))
    return dni_fx.plan(Recurrent(), inputs, cuts=["below"], state=True)


def all_crossings(plan: Plan, synthesizer: Any) -> dict[str, Any]:
    return {name: synthesizer for name, _ in crossings(plan)}


def test_every_crossing_has_a_name_and_an_activation(plan: Plan) -> None:
    activations = {name: activation_of(crossing) for name, crossing in crossings(plan)}
    assert {name: one.shape for name, one in activations.items()} == {"cut0_below": (3, 5), "time0": (3, 6)}
    assert all(one.axis == -1 and one.dtype is torch.float32 for one in activations.values())


def test_auto_is_chosen_for_each_crossing(plan: Plan) -> None:
    names, makers = factories(plan, all_crossings(plan, "auto"))
    assert names == {"cut0_below": "linear", "time0": "least_squares"}
    assert makers == {name: REGISTRY[chosen] for name, chosen in names.items()}
    state = plan.states[0]
    narrow = replace(state, tensors=tuple(replace(tensor, dtype="bfloat16") for tensor in state.tensors))
    large = replace(state, tensors=tuple(replace(tensor, shape=(3, 4096)) for tensor in state.tensors))
    for other in (narrow, large):
        changed = replace(plan, states=(other,))
        assert factories(changed, all_crossings(changed, "auto"))[0]["time0"] == "mlp"


def test_a_plan_and_its_synthesizers_fit(plan: Plan) -> None:
    chosen = all_crossings(plan, "mlp")
    with pytest.raises(DniFxError, match="has a synthesizer for 'cut9_below', which is no crossing of it"):
        factories(plan, chosen | {"cut9_below": "mlp"})
    del chosen["time0"]
    with pytest.raises(DniFxError, match="no synthesizer for its crossing 'time0'"):
        factories(plan, chosen)


def test_a_synthesizer_takes_device_and_dtype_of_its_activation() -> None:
    activation = Activation((3, 4), torch.float64, torch.device("meta"), 1)
    weight = make_synthesizer(lambda activation, size: nn.Linear(4, 4), activation, 0).weight
    assert isinstance(weight, Tensor) and (weight.dtype, weight.device.type) == (torch.float64, "meta")


@pytest.mark.parametrize("cuts", [{"state": True}, {"cuts": ["below"]}, {"state": True, "cuts": ["below"]}])
def test_a_factory_must_return_a_module(cuts: dict[str, Any]) -> None:
    inputs = (torch.rand(3, 4), torch.zeros(3, 6))
    with pytest.raises(DniFxError, match=r"is a NoneType, not an nn\.Module"):
        dni_fx.transform(Recurrent(), inputs, synthesizer=lambda activation, size: None, **cuts)
