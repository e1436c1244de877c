"""The states of the optimizers of all segments, in the form of one."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import dni_fx
from dni_fx import DniFxError
from dni_fx.runtime.optimizer_states import joined_state, load_joined_state


def stepped(*sizes: int, amsgrad: bool = False) -> list[list[torch.optim.Optimizer]]:
    torch.manual_seed(len(sizes))
    parameters = [[nn.Parameter(torch.rand(2)) for _ in range(size)] for size in sizes]
    optimizers: Any = [[torch.optim.Adam(own, 0.1, amsgrad=amsgrad)] if own else [] for own in parameters]
    for own in parameters:
        for p in own:
            p.grad = torch.rand(2)
    for own in optimizers:
        for optimizer in own:
            optimizer.step()
    return optimizers


def states(optimizers: Any) -> list[Any]:
    return [optimizer.state_dict() for own in optimizers for optimizer in own]


def test_parameters_are_numbered_through() -> None:
    joined = joined_state(stepped(2, 0, 3))
    assert [*joined["state"]] == [0, 1, 2, 3, 4]
    assert [group["params"] for group in joined["param_groups"]] == [[0, 1], [2, 3, 4]]


@pytest.mark.parametrize("form", ["joined", "of version 0.1", "without the rest"])
def test_what_is_loaded_is_what_was_saved(form: str) -> None:
    optimizers, others = stepped(2, 0, 3), stepped(2, 0, 3, amsgrad=True)
    saved: dict[str, Any] = copy.deepcopy(joined_state(optimizers))
    if form == "of version 0.1":
        saved = {"segments": [[copy.deepcopy(o.state_dict()) for o in own] for own in optimizers]}
    elif form == "without the rest":
        del saved["segments"]
    load_joined_state(others, saved)
    for one, other in zip(states(optimizers), states(others), strict=True):
        assert one["param_groups"] == [
            group | {"params": [*range(len(group["params"]))]} for group in other["param_groups"]
        ]
        for key, values in one["state"].items():
            assert all(torch.equal(value, other["state"][key][name]) for name, value in values.items())


@pytest.mark.parametrize("sizes", [(2,), (2, 0, 2), (2, 3, 0), (2, 3, 3), (1, 1, 3)])
def test_states_of_other_segments(sizes: tuple[int, ...]) -> None:
    others = stepped(*sizes)
    before = copy.deepcopy(states(others))
    with pytest.raises(DniFxError, match="not that of an optimizer of the same segments"):
        load_joined_state(others, joined_state(stepped(2, 0, 3)))
    assert str(states(others)) == str(before)


def test_state_that_is_no_tensor_of_a_parameter() -> None:
    class Counting(torch.optim.SGD):
        def state_dict(self) -> dict[str, Any]:
            return super().state_dict() | {"count": 3}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.count = state_dict.pop("count")
            super().load_state_dict(state_dict)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    net = dni_fx.transform(model, torch.rand(2, 4), cuts=["1"], step="segment", optimizer=lambda p: Counting(p, 0.1))
    optimizer: Any = net.dni.optimizer
    optimizer.load_state_dict(optimizer.state_dict())
    assert [inner.count for own in optimizer.optimizers for inner in own] == [3, 3]


def test_state_of_no_parameter() -> None:
    class Whole(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            self.state["whole"] = self.state.get("whole", 0) + len(self.param_groups[0]["params"])  # type: ignore[index]
            return super().step(closure)

    optimizers: Any = [[Whole([nn.Parameter(torch.rand(2)) for _ in range(size)], 0.1)] for size in (2, 3)]
    for own in optimizers:
        own[0].step()
    saved = copy.deepcopy(joined_state(optimizers))
    for own in optimizers:
        own[0].step()
    load_joined_state(optimizers, saved)
    assert [own[0].state["whole"] for own in optimizers] == [2, 3]
