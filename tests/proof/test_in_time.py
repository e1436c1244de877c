"""The check of two windows: it passes what is right, and fails what is broken between windows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from windows import FRONTENDS, IN_DEPTH, WITH_CUTS, Cell, H, Lstm, Memory, T, X, cut

import dni_fx
from dni_fx import ops
from dni_fx.ops.decouple import _Boundary
from dni_fx.proof.report import Check
from dni_fx.runtime.time_cut import TimeCut

pytestmark = pytest.mark.slow

IN_TIME = "in time: two windows train as one"


def in_time(net: Any, example: Any) -> Check:
    return next(check for check in dni_fx.check(net, example).checks if check.name == IN_TIME)


class Itself(nn.Module):
    """Its output is the state; with a batch norm, dropout, a keyword, and numbers among the results."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.drop = nn.Linear(H, H), nn.BatchNorm1d(H), nn.Dropout(0.5)

    def forward(self, x: Tensor, *, state: dict[str, Tensor]) -> tuple[Tensor, int, int, dict[str, Tensor]]:
        h = torch.tanh(self.drop(self.norm(self.inner(state["h"]))) + x)
        return h, 7, x.size(0), {"h": h}


QUICK = [
    (Lstm, "fx", {}),
    (Lstm, "export", IN_DEPTH),
    (Lstm, "modules", {"unlock": "none"}),
    (Cell, "fx", {"unlock": "none"}),
]


@pytest.mark.parametrize(
    ("make", "frontend", "options"),
    [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
        for make in (Lstm, Cell)
        for case in ((make, *cuts) for cuts in WITH_CUTS)
    ],
    ids=str,
)
def test_the_check_looks_at_two_windows(make: Any, options: dict[str, Any], frontend: str, tmp_path: Path) -> None:
    example = (X[:, :T], make.begin()) if make is Lstm else (make.begin(), X[:, :T])
    net = cut(make, frontend=frontend, **options)
    dni_fx.save(net, tmp_path / "net")
    again = dni_fx.load(tmp_path / "net", **({} if frontend == "fx" else {"model": make()}))
    for one in (net, again):
        found = in_time(one, example)
        assert found.passed and found.figure.startswith("float64: "), found


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_the_check_of_states_that_are_outputs_or_written_to(frontend: str) -> None:
    x, state = torch.randn(5, H), {"h": torch.randn(5, H)}
    net = dni_fx.transform(Itself(), (x,), example_kwargs={"state": state}, state={"state": 3}, frontend=frontend)
    assert dni_fx.check(net, (x,), example_kwargs={"state": state})
    example = torch.randn(5, 1, H), torch.randn(5, 3, H)
    assert dni_fx.check(dni_fx.transform(Memory(), example, state=True, frontend=frontend), example)


def _no_gradient_comes(outputs: Any, others: Any) -> Any:
    return outputs


def _twice(detached: Tensor, prediction: Tensor, segment: Any) -> Tensor:
    following = _Boundary.apply(detached, prediction, (), segment, ops.Layout())
    following.register_hook(lambda gradient: 2 * gradient)
    return following


def _learns_nothing(self: Any, states: Any) -> Any:
    return states


BROKEN: list[tuple[Any, str, Any, str]] = [
    (ops, "carry", _no_gradient_comes, "with true gradients"),
    (ops, "boundary", _twice, "with true gradients: off by"),
    (TimeCut, "enter", _learns_nothing, "time0 is in one of them only"),
]


@pytest.mark.parametrize(("home", "name", "broken", "seen"), BROKEN)
def test_the_check_sees_what_is_wrong_between_windows(
    home: Any, name: str, broken: Any, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = cut(Lstm)
    monkeypatch.setattr(home, name, broken)
    found = in_time(net, (X[:, :T], Lstm.begin()))
    assert not found.passed and seen in found.figure, found


def test_the_check_sees_a_state_that_is_not_cut_off() -> None:
    net = cut(Lstm)
    node = next(n for n in net.graph.nodes if n.target is ops.leave)
    parts = sorted(node.users, key=lambda n: n.args[1])[len(node.args[0]) :]
    for part, state in zip(parts, node.args[1], strict=True):
        part.replace_all_uses_with(state)
    net.recompile()
    found = in_time(net, (X[:, :T], Lstm.begin()))
    assert not found.passed and "second time" in found.figure, found


class Running(nn.Module):
    """What it keeps for its backward pass is written to in the next call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("size", torch.ones(H))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.size.mul_(0.9)
        return x * self.size


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.running = nn.Linear(H, H), Running()

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = torch.tanh(self.running(self.inner(state)) + x)
        return state.sum(1), state


def test_the_check_of_a_model_that_cannot_go_back_through_two_calls() -> None:
    example = torch.randn(5, H), torch.randn(5, H)
    net = dni_fx.transform(Scaled(), example, state=True)
    assert dni_fx.check(net, example)
    assert in_time(net, example).figure.startswith("not compared")
