"""Which arguments are the state: what is found, and what is refused with a reason."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from windows import DOUBLE, Cell, H, Lstm, Memory, N, State, T, X, cut, window

import dni_fx
from dni_fx import DniFxError, Training


class Shared(nn.Module):
    """One state that two segments read."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(2 + H, H), nn.Linear(2 * H, H)
        self.double()

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.tanh(self.one(torch.cat([x[:, 0], state], 1)))
        following = torch.tanh(self.two(torch.cat([y, state], 1)))
        return following.sum(1, keepdim=True), following


def test_a_state_that_several_segments_read() -> None:
    example = X[:, :1], torch.zeros(N, H, dtype=DOUBLE)
    with pytest.raises(DniFxError, match="is used in segments 0, 1"):
        dni_fx.transform(Shared(), example, state=True, cuts=["one"])
    net = dni_fx.transform(Shared(), example, state=True, cuts=["one"], unlock="none")
    assert dni_fx.check(net, example)


class Alone(nn.Module):
    """Gives its state, and nothing beside it; `once more`, as an output."""

    def __init__(self, cell: nn.Module, once_more: bool) -> None:
        super().__init__()
        self.cell, self.once_more = cell, once_more

    def forward(self, x: Tensor, state: State) -> State:
        after = self.cell(x, state)
        return (after, after) if self.once_more else after


@pytest.mark.parametrize(
    ("kind", "frontend"),
    [
        (nn.GRUCell, "fx"),
        (nn.LSTMCell, "modules"),
        (nn.GRUCell, "export"),
        pytest.param(nn.LSTMCell, "fx", marks=pytest.mark.slow),
        pytest.param(nn.GRUCell, "modules", marks=pytest.mark.slow),
        pytest.param(nn.LSTMCell, "export", marks=pytest.mark.slow),
    ],
)
def test_a_model_that_gives_its_state_alone_is_refused_and_the_advice_works(kind: Any, frontend: str) -> None:
    state: Any = torch.zeros(5, H)
    state = state if kind is nn.GRUCell else (state, state)
    example = torch.randn(5, 2), state
    for asked in (True, {"state": 0}):
        with pytest.raises(DniFxError, match="return it once more, as an output: y, state"):
            dni_fx.transform(Alone(kind(2, H), False), example, state=asked, frontend=frontend)
    net = dni_fx.transform(Alone(kind(2, H), True), example, state=True, frontend=frontend).train()
    assert dni_fx.check(net, example)
    for _ in range(3):
        y, state = net(example[0], state)
        torch.stack(pytree.tree_leaves(y)).sum().backward()
    assert net.dni.metrics()["time0"]["steps"] == 2


class Tokens(nn.Module):
    """Time-major tokens (T, N) and a memory (N, slots, W) beside the state of an nn.GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.rnn, self.write = nn.Embedding(9, 4), nn.GRU(4, H, 2), nn.Linear(H, 3)

    def forward(self, x: Tensor, h: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, h = self.rnn(self.embedding(x), h)
        return y + memory.sum(), h, memory + self.write(h[-1])[:, None]


def test_the_batch_is_found_where_time_comes_first() -> None:
    example = torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 5, H), torch.zeros(5, 2, 3)
    with pytest.raises(DniFxError, match="more than one axis of 'memory'"):
        dni_fx.transform(Tokens(), example, state={"h": 1, "memory": 2}, frontend="modules")
    example = torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 5, H), torch.zeros(5, 7, 3)
    net = dni_fx.transform(Tokens(), example, state={"h": 1, "memory": -1}, frontend="modules")
    assert [tensor.axis for tensor in net.dni.plan.states[0].tensors] == [1, 0]


def test_what_is_for_a_cut_in_time_alone() -> None:
    for training in (Training(discount=0.5), Training(horizon=2), Training(auxiliary=1.0), Training(centered=True)):
        with pytest.raises(DniFxError, match="are for a cut in time"):
            dni_fx.transform(
                nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)), torch.rand(3, 4), cuts=2, training=training
            )
    for wrong in (
        {"discount": 2.0},
        {"trace": 0.5},
        {"horizon": 0},
        {"horizon": 2, "auxiliary": 1.0},
        {"auxiliary": -1},
        {"centered": 1},
    ):
        with pytest.raises(DniFxError):
            Training(**wrong)
    for asked in (1, "auto", ["state"]):
        with pytest.raises(DniFxError, match="True, or a dict such as"):
            dni_fx.transform(Lstm(), (X[:, :T], Lstm.begin()), state=asked)
    net = cut(Lstm)
    window(net, 0, Lstm.begin())
    with pytest.raises(DniFxError, match="not a list"):
        net.dni.reset([True] * N)


REFUSED: list[tuple[Any, Any, dict[str, Any], str]] = [
    (Lstm, {"nothing": 1}, {}, "no argument 'nothing'; there are x, state"),
    (Lstm, {"state": 2}, {}, "no output 2"),
    (Lstm, {"state": 0}, {}, "holds tensors at 0, 1, but output 0 one tensor"),
    (Cell, {"hidden": "y"}, {}, "has shapes"),
    (Cell, True, {}, "state=True is for a forward"),
    (Lstm, {}, {}, "name an argument"),
    (Lstm, True, {"frontend": "modules", "cuts": ["lstm"], "unlock": "none"}, "together need a graph"),
    (Lstm, True, {"mix": 0.5, "unlock": "none"}, "mix is for cuts in depth"),
    (Lstm, True, {"classes": 3}, "classes= is for cuts in depth: give cuts="),
    (Lstm, True, {"training": Training(warmup=2)}, "training.warmup is for cuts in depth"),
    (Lstm, True, {"training": Training(scale="rms")}, "is for cuts in depth"),
    (Lstm, True, {"objective": "throughput"}, "are for cuts in depth"),
    (Lstm, True, {"synthesizer": "lstm"}, "carries a state of its own"),
]


@pytest.mark.parametrize(("make", "state", "options", "message"), REFUSED)
def test_refused_states(make: Any, state: Any, options: dict[str, Any], message: str) -> None:
    example = (X[:, :T], make.begin()) if make is Lstm else (make.begin(), X[:, :T])
    with pytest.raises(DniFxError, match=message):
        dni_fx.transform(make(), example, state=state, **options)


class Bare(nn.Module):
    """Gives nothing but its state."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2 + H, H)

    def forward(self, x: Tensor, h: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(self.inner(torch.cat([x, h], 1))), steps + 1


def test_states_that_would_train_nothing_or_are_no_numbers() -> None:
    example = torch.zeros(N, 2), torch.zeros(N, H), torch.zeros(N, 1, dtype=torch.int64)
    with pytest.raises(DniFxError, match="would train nothing"):
        dni_fx.transform(Bare(), example, state={"h": 0})
    with pytest.raises(DniFxError, match="not of one floating dtype"):
        dni_fx.transform(Bare(), example, state={"h": 0, "steps": 1})
    with pytest.raises(DniFxError, match="more than one axis"):
        dni_fx.transform(Memory(), (torch.zeros(3, 3, H), torch.zeros(3, 3, H)), state=True)


def test_a_state_that_is_missing_or_goes_both_ways() -> None:
    state = torch.zeros(2, N, H), torch.zeros(2, N, H)
    with pytest.raises(DniFxError, match="is bidirectional"):
        dni_fx.transform(nn.LSTM(2, H, batch_first=True, bidirectional=True), (X.float(), state), state=True)
    with pytest.raises(DniFxError, match="has no argument 'hx'"):  # it was given as None, its default
        dni_fx.transform(nn.LSTM(2, H, batch_first=True).double(), (X, None), state={"hx": 1}, frontend="export")
    net = cut(Lstm)
    with pytest.raises(DniFxError, match="begin a sequence with zeros"):
        net(X[:, :T], (Lstm.begin()[0],))
