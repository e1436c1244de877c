"""The cut in time: with exact predictions windows train as the whole sequence does; with none, as truncated ones."""

import copy
import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils import _pytree as pytree

import dni_fx
from dni_fx import DniFxError, Training, ops
from dni_fx.ops.decouple import _Boundary
from dni_fx.proof.report import Check
from dni_fx.report.plan import plan_table
from dni_fx.runtime.time_cut import TimeCut
from dni_fx.synthesizers.base import Activation, Synthesizer, centered

N, T, WINDOWS, H = 3, 2, 4, 4
DOUBLE = torch.float64
X = torch.randn(N, T * WINDOWS, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
Y = torch.randn(N, T * WINDOWS, 1, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
State = Any
FRONTENDS = ["fx", "export", "modules"]
IN_DEPTH = {"unlock": "none", "cuts": 2}
WITH_CUTS = [(frontend, options) for frontend in FRONTENDS for options in ({}, {"unlock": "none"})]
WITH_CUTS += [(frontend, IN_DEPTH) for frontend in ("fx", "export")]  # the front end modules makes no such cuts beside


class Lstm(nn.Module):
    """State: two tensors (layers, N, H)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm, self.head = nn.LSTM(2, H, 2, batch_first=True), nn.Linear(H, 1)
        self.double()

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, state = self.lstm(x, state)
        return self.head(y), state

    @staticmethod
    def begin(rows: int = N) -> State:
        return torch.zeros(2, rows, H, dtype=DOUBLE), torch.zeros(2, rows, H, dtype=DOUBLE)


class Cell(nn.Module):
    """State: one tensor (N, H), unrolled by hand; other names and order, and an output that carries no gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.head = nn.Linear(2 + H, H), nn.Linear(H, 1)
        self.double()

    def forward(self, hidden: Tensor, x: Tensor) -> dict[str, Tensor]:
        ys = []
        for t in range(T):
            hidden = torch.tanh(self.inner(torch.cat([x[:, t], hidden], 1)))
            ys.append(self.head(hidden))
        return {"last": hidden, "y": torch.stack(ys, 1), "signs": ys[-1].detach().sign()}

    @staticmethod
    def begin(rows: int = N) -> State:
        return torch.zeros(rows, H, dtype=DOUBLE)


def window(net: nn.Module, k: int, state: State) -> tuple[Tensor, State]:
    """Loss of the k-th window, the mean over the rows, and the state after it."""
    x, y = (t[: len(pytree.tree_leaves(state)[0].movedim(-2, 0)), k * T : (k + 1) * T] for t in (X, Y))
    if isinstance(state, tuple):
        output, after = net(x, state)
    else:
        given = net(state, x)
        output, after = given["y"], given["last"]
    return (output - y).square().sum((1, 2)).mean(), after


def cut(make: Any, **options: Any) -> nn.Module:
    model = make()
    example = (make.begin(), X[:, :T]) if make is Cell else (X[:, :T], make.begin())
    state: Any = {"hidden": "last"} if make is Cell else True
    return dni_fx.transform(model, example, state=state, **options).train()


def gradients(net: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad for n, p in net.named_parameters() if not n.startswith("dni.") and p.grad is not None}


def rows(state: State) -> Tensor:
    return torch.cat([t.movedim(-2, 0).flatten(1) for t in pytree.tree_leaves(state)], 1)


Table = list[tuple[Tensor, Tensor]]


def whole(make: Any) -> tuple[dict[str, Tensor], Table]:
    """Backpropagation through the whole sequence: gradients of parameters; states after each window and theirs."""
    model, state, total, states = make(), make.begin(), torch.zeros((), dtype=DOUBLE), []
    for k in range(WINDOWS):
        loss, state = window(model, k, state)
        total = total + loss
        state = pytree.tree_map(torch.clone, state)  # whose gradient is that of later windows alone
        for leaf in pytree.tree_leaves(state):
            leaf.retain_grad()
        states.append(state)
    total.backward()
    future = [pytree.tree_map(lambda t: torch.zeros_like(t) if t.grad is None else t.grad, s) for s in states]
    return gradients(model), [(rows(s).detach(), rows(g)) for s, g in zip(states, future, strict=True)]


class Exact(Synthesizer):
    """Knows the gradient of every state; keeps the targets that come."""

    table: Table = []

    def __init__(self, activation: Activation, context_size: int = 0) -> None:
        super().__init__(activation, context_size)
        self.slope = nn.Parameter(torch.zeros((), dtype=DOUBLE))
        self.targets: list[Tensor] = []

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
        known = [g for h, g in self.table if h.shape == activation.shape and torch.allclose(h, activation)]
        exact = (known or [torch.zeros_like(activation)])[0] * len(activation)
        prediction = exact + self.slope * activation
        if prediction.requires_grad:
            prediction.register_hook(lambda error: self.targets.append(exact / len(activation) - error))
        return prediction


@pytest.mark.parametrize("unlock", ["backward", "none"])
@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("make", [Lstm, Cell])
def test_with_exact_predictions_it_is_backpropagation_through_the_whole_sequence(
    make: Any, frontend: str, unlock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, table = whole(make)
    monkeypatch.setattr(Exact, "table", table)
    net, state = cut(make, synthesizer=Exact, frontend=frontend, unlock=unlock), make.begin()
    for k in range(WINDOWS):
        loss, state = window(net, k, state)
        assert not any(leaf.requires_grad for leaf in pytree.tree_leaves(state))
        loss.backward()
    found = gradients(net)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-10)
    targets = net.dni.synthesizers["time0"].targets
    for target, (_, gradient) in zip(targets, table[:-1], strict=True):  # what comes back is what it knew
        torch.testing.assert_close(target, gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("make", [Lstm, Cell])
def test_with_none_it_is_truncated(make: Any, frontend: str) -> None:
    model, net = make(), cut(make, synthesizer="zero", frontend=frontend)
    states = [make.begin(), make.begin()]
    for k in range(WINDOWS):
        for i, one in enumerate((model, net)):
            loss, state = window(one, k, states[i])
            loss.backward()
            states[i] = pytree.tree_map(torch.Tensor.detach, state)
    assert all(torch.equal(gradient, gradients(model)[name]) for name, gradient in gradients(net).items())


class Stack(nn.Module):
    """Two layers, each with two tensors for a state: a cut between the layers parts them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.LSTM(2, H, batch_first=True), nn.LSTM(H, H + 1, batch_first=True)
        self.head = nn.Linear(H + 1, 1)
        self.double()

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        below, above = state
        y, below = self.one(x, below)
        z, above = self.two(y, above)
        return self.head(z), (below, above)

    @staticmethod
    def begin(rows: int = N) -> State:
        return tuple(tuple(torch.zeros(1, rows, size, dtype=DOUBLE) for _ in range(2)) for size in (H, H + 1))


@pytest.mark.parametrize("unlock", ["backward", "none"])
@pytest.mark.parametrize("frontend", ["fx", "export"])
def test_each_segment_has_its_own_state_and_all_of_it_is_exact(
    frontend: str, unlock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told the true gradients at the cut in depth too, windows train as backpropagation does, end to end."""
    between: list[Tensor] = []

    class Watched(Stack):
        def __init__(self) -> None:
            super().__init__()
            self.one.register_forward_hook(lambda module, args, output: between.append(output[0]))
            self.one.register_forward_hook(lambda module, args, output: output[0].retain_grad())

    wanted, table = whole(Watched)
    sizes = [2 * H, 2 * H + 2]
    known = [
        (s, g) for states, future in table for s, g in zip(states.split(sizes, 1), future.split(sizes, 1), strict=True)
    ]
    monkeypatch.setattr(Exact, "table", known + [(y.detach(), y.grad) for y in between])
    net = cut(Stack, synthesizer=Exact, frontend=frontend, unlock=unlock, cuts=["one"])
    assert [(state.enters, state.leaves) for state in net.dni.plan.states] == [((0,), 0), ((1,), 1)]
    assert len(net.dni.plan.cuts[0].tensors) == 1  # no state crosses it on its way out
    state = Stack.begin()
    for k in range(WINDOWS):
        loss, state = window(net, k, state)
        loss.backward()
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients(net)[name], gradient, rtol=1e-10, atol=1e-10)
    for index, size in enumerate((H, H + 1)):
        for target, (states, future) in zip(net.dni.synthesizers[f"time{index}"].targets, table[:-1], strict=True):
            assert states.split(sizes, 1)[index].shape == (N, 2 * size)
            torch.testing.assert_close(target, future.split(sizes, 1)[index], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("unlock", ["backward", "none"])
def test_a_net_with_cuts_of_both_kinds_is_checked_saved_and_loaded(unlock: str, tmp_path: Path) -> None:
    example = X[:, :T], Stack.begin()
    net = cut(Stack, cuts=["one"], unlock=unlock, classes=3)
    assert dni_fx.check(net, example)
    dni_fx.save(net, tmp_path / "net")
    again = dni_fx.load(tmp_path / "net").train()
    assert again.dni.plan == net.dni.plan
    labels = torch.arange(N) % 3
    for one in (net, again):
        state = Stack.begin()
        for _ in range(3):
            y, state = one(X[:, :T], state, dni_context=labels)
            y.sum().backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(net.parameters(), again.parameters(), strict=True))
    assert len(net.dni.metrics()) == 3 and net.dni.metrics()["time1"]["steps"] == 2


def test_each_segment_steps_with_the_synthesizer_of_its_state() -> None:
    net = cut(Stack, cuts=["one"], synthesizer="mlp", optimizer=torch.optim.Adam, step="segment")
    stepped = [
        {id(p) for o in own for g in o.param_groups for p in g["params"]} for own in net.dni.optimizer.optimizers
    ]
    for index in range(2):
        assert {id(p) for p in net.dni.crossings[f"time{index}"].parameters()} <= stepped[index]
    before, state = [p.clone() for p in net.parameters()], Stack.begin()
    for k in range(4):
        loss, state = window(net, k, state)
        loss.backward()
    assert not any(torch.equal(p, q) for p, q in zip(before, net.parameters(), strict=True))


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


class Linear(nn.Module):
    """A scalar state that keeps the share `keep`, and is the output."""

    def __init__(self, keep: float) -> None:
        super().__init__()
        self.keep = nn.Parameter(torch.tensor(keep, dtype=DOUBLE))

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = self.keep * state + x
        return state, state


@pytest.mark.parametrize("synthesizer", ["linear", "least_squares(ridge=1e-9, memory=20)"])
def test_the_fixed_point_is_the_analytic_one(synthesizer: str) -> None:
    """With the sum of all outputs for a loss, dL/dh is keep + keep^2 + ...: for the mean over rows, divided by them."""
    net = dni_fx.transform(
        Linear(0.5),
        (torch.randn(8, 1, dtype=DOUBLE), torch.zeros(8, 1, dtype=DOUBLE)),
        state=True,
        synthesizer=synthesizer,
        training=Training(scale=1.0, centered=False),
    ).train()
    made = net.dni.synthesizers["time0"]
    optimizer = torch.optim.SGD(made.parameters(), 0.1) if synthesizer == "linear" else None
    state = torch.zeros(8, 1, dtype=DOUBLE)
    for _ in range(400 if optimizer is not None else 1000):
        y, state = net(torch.randn(8, 1, dtype=DOUBLE), state)
        y.mean().backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
    weight, bias = (p.item() for p in (made.parameters() if optimizer is not None else made.weight))
    assert abs(weight) < 1e-6 and abs(bias - 1.0) < 1e-6  # 0.5 / (1 - 0.5), for each sample's own loss


def test_rows_that_begin_anew_teach_that_nothing_came_after(monkeypatch: pytest.MonkeyPatch) -> None:
    _, table = whole(Lstm)
    monkeypatch.setattr(Exact, "table", table)
    net = cut(Lstm, synthesizer=Exact)
    heard = net.dni.synthesizers["time0"].targets

    def target_after(change: Any) -> Tensor:
        net.dni.reset()
        _, state = window(net, 0, Lstm.begin())
        net.zero_grad()
        loss, _ = window(net, 1, change(state))
        heard.clear()
        loss.backward()
        return heard[0]

    plain = target_after(lambda state: state)
    assert plain.any(1).all()
    told = target_after(lambda state: net.dni.reset(torch.tensor([True, False, False])) or state)
    assert not told[0].any() and torch.allclose(told[1:], plain[1:])

    def begun(state: State) -> State:
        return pytree.tree_map(lambda t: t * torch.tensor([[1.0], [0.0], [1.0]]), state)

    seen = target_after(begun)
    assert not seen[1].any() and seen[[0, 2]].any(1).all()
    with pytest.raises(DniFxError, match=r"one entry a row of the last window"):
        net.dni.reset(torch.ones(2, dtype=torch.bool))


def test_batches_and_windows_of_other_sizes() -> None:
    net = cut(Lstm)
    for count in (3, 2, 3):
        state = Lstm.begin(count)
        for k in range(2):
            loss, state = window(net, k, state)
            loss.backward()
    y, _ = net(X[:, :1], Lstm.begin())
    y.sum().backward()
    net.eval()
    out, state = net(X[:, :T], Lstm.begin())
    assert torch.equal(out, Lstm()(X[:, :T], Lstm.begin())[0]) and state[0].requires_grad


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_it_is_saved_loaded_checked_and_shown(frontend: str, tmp_path: Path) -> None:
    net = cut(Lstm, frontend=frontend)
    example = (X[:, :T], Lstm.begin())
    assert dni_fx.check(net, example)
    dni_fx.save(net, tmp_path / "net")
    again = dni_fx.load(tmp_path / "net", **({} if frontend == "fx" else {"model": Lstm()})).train()
    assert again.dni.plan == net.dni.plan
    for one in (net, again):
        state = Lstm.begin()
        for k in range(3):
            loss, state = window(one, k, state)
            loss.backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(net.parameters(), again.parameters(), strict=True))
    assert set(net.dni.metrics()) == {"time0"} and net.dni.metrics()["time0"]["steps"] == 2
    model = dni_fx.restore(net)
    assert isinstance(model, Lstm) and model(*example)[1][0].requires_grad
    copy.deepcopy(net)


def test_with_cuts_in_depth_and_an_optimizer_that_steps_by_itself() -> None:
    net, state = cut(Cell, unlock="none", cuts=["inner"]), Cell.begin()
    for k in range(2):
        loss, state = window(net, k, state)
        loss.backward()
    assert len(net.dni.plan.cuts) == 2 and net.dni.metrics()["time0"]["steps"] == 1
    net = cut(Lstm, synthesizer="mlp", optimizer=torch.optim.Adam, step="segment")
    before = [p.clone() for p in net.parameters()]
    state = Lstm.begin()
    for k in range(3):
        loss, state = window(net, k, state)
        loss.backward()
    assert not any(torch.equal(p, q) for p, q in zip(before, net.parameters(), strict=True))


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


@pytest.mark.parametrize(("frontend", "options"), WITH_CUTS, ids=str)
@pytest.mark.parametrize("make", [Lstm, Cell])
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
    assert dni_fx.check(net, (x,), kwargs={"state": state})
    example = torch.randn(5, 1, H), torch.randn(5, 3, H)
    assert dni_fx.check(dni_fx.transform(Memory(), example, state=True, frontend=frontend), example)


def _no_gradient_comes(outputs: Any, others: Any) -> Any:
    return outputs


def _twice(detached: Tensor, prediction: Tensor, segment: Any) -> Tensor:
    following = _Boundary.apply(detached, prediction, (), segment)
    following.register_hook(lambda gradient: 2 * gradient)
    return following


def _learns_nothing(self: Any, states: Any) -> Any:
    return states


BROKEN: list[tuple[Any, str, Any, str]] = [
    (ops, "carry", _no_gradient_comes, "told the true gradient"),
    (ops, "boundary", _twice, "told the true gradient: off by"),
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


class Separate(nn.Module):
    """Two states of different sizes, in no order; the first tensor is the state itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.head = nn.Linear(2 + H, H), nn.Linear(H + 6, 6), nn.Linear(6, 1)
        self.double()

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = torch.tanh(self.one(torch.cat([x[:, 0], h], 1)))
        c = torch.tanh(self.two(torch.cat([h, c], 1)))
        return self.head(c), h, c


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("state", [{"h": 1, "c": 2}, {"c": 2, "h": 1}])
def test_the_order_in_which_states_are_named_makes_no_difference(state: dict[str, Any], frontend: str) -> None:
    h, c = torch.zeros(N, H, dtype=DOUBLE), torch.zeros(N, 6, dtype=DOUBLE)
    net = dni_fx.transform(Separate(), (X[:, :1], h, c), state=state, frontend=frontend, synthesizer="mlp").train()
    for k in range(3):
        y, h, c = net(X[:, k : k + 1], h, c)
        y.sum().backward()
    assert net.dni.metrics()["time0"]["steps"] == 2
    assert net.dni.time0.memory.handed_on.shape == (N, H + 6)
    y, h, c = net(X[:, 3:4], h, c)  # every row went on
    prediction = net.dni.time0.synthesizer.net[-1].weight
    net.zero_grad()
    y.sum().backward()
    assert prediction.grad.any()


class Keyed(nn.Module):
    """Its state is a dict; `order` is that in which it gives it."""

    def __init__(self, order: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.order = order
        self.one, self.two, self.head = nn.Linear(2 + H, H), nn.Linear(2 * H, H), nn.Linear(H, 1)
        self.double()

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        h = torch.tanh(self.one(torch.cat([x[:, 0], state["h"]], 1)))
        c = torch.tanh(self.two(torch.cat([h, state["c"]], 1)))
        return self.head(c), {key: {"h": h, "c": c}[key] for key in self.order}


def keyed(order: str) -> dict[str, Tensor]:
    return {key: torch.zeros(N, H, dtype=DOUBLE) for key in order}


@pytest.mark.parametrize("frontend", ["fx", "modules"])
@pytest.mark.parametrize("given", ["hc", "ch"])
@pytest.mark.parametrize("example", ["hc", "ch"])
@pytest.mark.parametrize("gives", ["hc", "ch"])
def test_the_keys_of_a_state_may_be_in_any_order(gives: str, example: str, given: str, frontend: str) -> None:
    net = dni_fx.transform(Keyed(gives), (X[:, :1], keyed(example)), state=True, frontend=frontend).train()
    state, h, c = keyed(given), *keyed("hc").values()
    for k in range(3):
        y, state = net(X[:, k : k + 1], {key: state[key] for key in given})
        wanted, after = Keyed(gives)(X[:, k : k + 1], {"h": h, "c": c})
        assert torch.equal(y, wanted) and all(torch.equal(state[key], after[key]) for key in "hc")
        h, c = after["h"], after["c"]
        y.sum().backward()
    assert net.dni.metrics()["time0"]["steps"] == 2  # each window was seen to go on
    assert dni_fx.check(net, (X[:, :1], keyed(given)))


def test_where_the_order_of_keys_is_fixed_another_is_refused() -> None:
    example = X[:, :1], keyed("hc")
    with pytest.raises(DniFxError, match="give the example in that of the output"):
        dni_fx.transform(Keyed("ch"), example, state=True, frontend="export")
    net = dni_fx.transform(Keyed("hc"), example, state=True, frontend="export").train()
    with pytest.raises(TypeError, match=r"in another order than in the example, \(x, state_h, state_c\)"):
        net(X[:, :1], keyed("ch"))
    net = dni_fx.transform(Keyed("ch"), (X[:, :1], keyed("ch")), state=True, frontend="export").train()
    state = keyed("ch")
    for k in range(3):
        y, state = net(X[:, k : k + 1], state)
        y.sum().backward()
    assert net.dni.metrics()["time0"]["steps"] == 2
    with pytest.raises(DniFxError, match="holds tensors at h, c, but output 1 tensors at 0, 1"):
        dni_fx.transform(Tupled(), example, state=True)


class Tupled(Keyed):
    def __init__(self) -> None:
        super().__init__("hc")

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:  # type: ignore[override]
        y, state = super().forward(x, state)
        return y, tuple(state.values())


class Alone(nn.Module):
    """Gives its state, and nothing beside it; `once more`, as an output."""

    def __init__(self, cell: nn.Module, once_more: bool) -> None:
        super().__init__()
        self.cell, self.once_more = cell, once_more

    def forward(self, x: Tensor, state: State) -> State:
        after = self.cell(x, state)
        return (after, after) if self.once_more else after


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("kind", [nn.GRUCell, nn.LSTMCell])
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


class Branching(nn.Module):
    """Goes by what the state holds; nested, beside what is no tensor, in a `**kwargs`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(2 + H, H), nn.Linear(2 + H, H)
        self.double()

    def forward(self, x: Tensor, **more: Any) -> dict[str, Any]:
        h, c = more["state"]["both"]
        inner = self.one if h.sum() > 0 else self.two
        h = torch.tanh(inner(torch.cat([x[:, 0], h], 1)))
        c = torch.tanh(inner(torch.cat([x[:, 0], c], 1)))
        return {"name": "branching", "y": [h, h + c], "after": {"both": (h, c)}}


def test_what_has_no_graph_has_a_cut_in_time_too() -> None:
    state: Any = {"both": (torch.zeros(N, H, dtype=DOUBLE), torch.zeros(N, H, dtype=DOUBLE))}
    example = {"example_inputs": (X[:, :1],), "example_kwargs": {"state": state}}
    net = dni_fx.transform(Branching(), **example, state={"state": "after"}).train()
    assert net.dni.plan.frontend == "modules"
    assert dni_fx.check(net, (X[:, :1],), kwargs={"state": state})
    for k in range(3):
        given = net(X[:, k : k + 1], state=state)
        assert given["name"] == "branching" and given["y"][0].requires_grad
        sum(y.sum() for y in given["y"]).backward()
        state = given["after"]
        assert not any(leaf.requires_grad for leaf in pytree.tree_leaves(state))
    assert net.dni.metrics()["time0"]["steps"] == 2
    with pytest.raises(DniFxError, match="begin a sequence with zeros"):
        net(X[:, :1], state={"both": state["both"][:1]})
    with pytest.raises(DniFxError, match="begin a sequence with zeros"):
        net(X[:, :1])


class Listing(nn.Module):
    """Gives a list with an entry a step, before a state of the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2 + H, H).double()

    def forward(self, x: Tensor, h: Tensor) -> tuple[list[Tensor], Tensor]:
        hs = []
        for t in range(x.shape[1]):
            h = torch.tanh(self.inner(torch.cat([x[:, t], h], 1)))
            hs.append(h)
        return hs, h


def test_the_state_is_found_after_a_list_of_any_length() -> None:
    net = dni_fx.transform(Listing(), (X[:, :2], Cell.begin()), state=True, frontend="modules").train()
    h = Cell.begin()
    for length in (1, 3, 2):
        hs, h = net(X[:, :length], h)
        assert len(hs) == length and all(one.requires_grad for one in hs) and not h.requires_grad
        sum(one.sum() for one in hs).backward()
    assert net.dni.metrics()["time0"]["steps"] == 2


@dataclass
class Boxed:
    y: Tensor


class Boxing(Keyed):
    def forward(self, x: Tensor, state: dict[str, Tensor]) -> Any:
        y, state = super().forward(x, state)
        return Boxed(y), state


def test_tensors_that_cannot_be_handed_on_are_refused() -> None:
    with pytest.raises(DniFxError, match="gives tensors in a Boxed: give them in a tuple or dict"):
        dni_fx.transform(Boxing("hc"), (X[:, :1], keyed("hc")), state=True, frontend="modules")


def test_a_learned_beginning_gets_its_gradient() -> None:
    begin = nn.Parameter(torch.randn(1, H, dtype=DOUBLE))
    net = cut(Cell)
    for _ in range(2):
        begin.grad = None
        loss, _ = window(net, 0, begin.expand(N, H))
        loss.backward()
        assert begin.grad is not None and begin.grad.any()


def test_another_stream_teaches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _, table = whole(Lstm)
    monkeypatch.setattr(Exact, "table", table)
    net = cut(Lstm, synthesizer=Exact)
    heard = net.dni.synthesizers["time0"].targets
    _, one = window(net, 0, Lstm.begin())
    _, two = window(net, 0, pytree.tree_map(lambda t: t + 1.0, Lstm.begin()))
    loss, _ = window(net, 1, one)
    loss.backward()
    assert not heard and two[0].any()


def test_two_losses_bring_one_prediction() -> None:
    def step(twice: bool) -> dict[str, Tensor]:
        net = cut(Cell, synthesizer=Constant)
        given = net(Cell.begin(), X[:, :T])["y"]
        if twice:
            given[:, 0].sum().backward(retain_graph=True)
            given[:, 1].sum().backward()
        else:
            given.sum().backward()
        return gradients(net)

    for name, gradient in step(False).items():
        torch.testing.assert_close(step(True)[name], gradient)


class Constant(Synthesizer):
    def __init__(self, activation: Activation, context_size: int = 0) -> None:
        super().__init__(activation, context_size)
        self.slope = nn.Parameter(torch.ones((), dtype=DOUBLE))

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
        return self.slope * torch.ones_like(activation)


def heard_over(make: Any, horizon: int, trace: float = 1.0, **options: Any) -> dict[str, list[Tensor]]:
    """Targets of a sequence, first to last, for synthesizers that say nothing; the next sequence has begun after it."""
    training = Training(horizon=horizon, trace=trace)
    net, state = cut(make, synthesizer=Exact, training=training, **options), make.begin()
    for k in range(WINDOWS):
        loss, state = window(net, k, state)
        loss.backward()
    window(net, 0, make.begin())[0].backward()
    times = {name: s.targets for name, s in net.dni.synthesizers.items() if name.startswith("time")}
    return {name: targets[: WINDOWS - 1] for name, targets in times.items()}


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("make", [Lstm, Cell])
def test_over_a_horizon_targets_are_the_true_gradients(make: Any, frontend: str) -> None:
    _, table = whole(make)
    (targets,) = heard_over(make, WINDOWS, frontend=frontend).values()
    assert len(targets) == WINDOWS - 1
    for target, (_, future) in zip(targets, table[:-1], strict=True):
        torch.testing.assert_close(target, future, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("unlock", ["backward", "none"])
def test_over_a_horizon_with_cuts_in_depth(unlock: str) -> None:
    _, table = whole(Stack)
    heard = heard_over(Stack, WINDOWS, cuts=["one"], unlock=unlock)
    sizes = [2 * H, 2 * H + 2]
    for index, targets in enumerate(heard.values()):
        for target, (_, future) in zip(targets, table[:-1], strict=True):
            torch.testing.assert_close(target, future.split(sizes, 1)[index], rtol=1e-10, atol=1e-10)


def test_without_a_trace_they_are_those_of_single_windows() -> None:
    (one,), (other,) = heard_over(Cell, 1).values(), heard_over(Cell, WINDOWS, trace=0.0).values()
    for target, expected in zip(other, one, strict=True):
        torch.testing.assert_close(target, expected)


def test_a_horizon_goes_on_after_a_checkpoint(tmp_path: Path) -> None:
    training = Training(horizon=3)
    example = X[:, :T], Lstm.begin()

    def made() -> tuple[Any, torch.optim.Optimizer]:
        model = Lstm()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        options: Any = {"state": True, "synthesizer": "mlp", "optimizer": optimizer, "training": training}
        return dni_fx.transform(model, example, **options).train(), optimizer

    def train(net: Any, optimizer: torch.optim.Optimizer, state: State, steps: range) -> State:
        for k in steps:
            loss, state = window(net, k % WINDOWS, state)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return state

    net, optimizer = made()
    state = train(net, optimizer, Lstm.begin(), range(5))
    dni_fx.save_checkpoint(tmp_path / "run", net, optimizer=optimizer, state=state)
    train(net, optimizer, state, range(5, 9))
    again, optimizer = made()
    state = dni_fx.load_checkpoint(tmp_path / "run", again, optimizer=optimizer)["state"]
    train(again, optimizer, state, range(5, 9))
    for name, value in net.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert net.dni.metrics()["time0"]["steps"] > 2
    copy.deepcopy(net)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"training": Training(horizon=2), "compile": True}, "leave compile out, or set"),
        (
            {"training": Training(horizon=2), "scaler": torch.amp.GradScaler("cpu")},
            "leave scaler out, or set",
        ),
    ],
)
def test_what_a_horizon_does_not_go_with(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DniFxError, match=message):
        cut(Lstm, **options)


def test_the_auxiliary_task_reaches_the_window_before() -> None:
    """Half the squared error of what the state says of the next synthetic gradient, as a share of the mean squares."""
    heard = {}
    for weight in (0.0, 3.0):
        net, state = cut(Cell, synthesizer=Constant, training=Training(auxiliary=weight)), Cell.begin()
        if weight:
            with torch.no_grad():
                for parameter in net.dni.time0.auxiliary.parameters():
                    parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
        loss, state = window(net, 0, state)
        loss.backward()
        net.zero_grad()
        loss, _ = window(net, 1, state)
        loss.backward()
        heard[weight] = net
    head = copy.deepcopy(net.dni.time0.auxiliary)
    head.zero_grad()
    rows = state.detach().requires_grad_()
    said, following = head(rows), torch.ones(N, H, dtype=DOUBLE)
    mean_square = (following.square() + said.detach().square()).mean()
    (3.0 * 0.5 * (said - following).square().mean() / mean_square).backward()
    for own, expected in zip(net.dni.time0.auxiliary.parameters(), head.parameters(), strict=True):
        torch.testing.assert_close(own.grad, expected.grad)
    slopes = [heard[weight].dni.time0.synthesizer.slope.grad for weight in (0.0, 3.0)]
    torch.testing.assert_close(slopes[0] - slopes[1], rows.grad.sum())  # its target is more by that
    assert len(gradients(heard[0.0])) == len(gradients(heard[3.0]))


@pytest.mark.parametrize("scale", [None, 0.25, 4.0])
def test_predictions_are_what_the_synthesizer_says_at_its_scale(scale: float | None) -> None:
    net = cut(Cell, synthesizer=Constant, training=Training(scale=scale))
    before, state = cut(Cell, synthesizer="zero"), Cell.begin()
    found = []
    for one in (net, before):
        loss, _ = window(one, 0, state)
        loss.backward()
        found.append(gradients(one)["inner.bias"])
    model = Cell()
    (model(Cell.begin(), X[:, :T])["last"].sum() / N / (scale or 1.0)).backward()
    torch.testing.assert_close(found[0] - found[1], gradients(model)["inner.bias"])


class Twice(dni_fx.Synthesizer):
    """Says twice the state; hears what comes back."""

    def __init__(self, activation: Activation, context_size: int = 0) -> None:
        super().__init__(activation, context_size)
        self.errors: list[Tensor] = []
        self.slope = nn.Parameter(torch.full((), 2.0, dtype=DOUBLE))

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
        said = self.slope * activation
        if said.requires_grad:
            said.register_hook(self.errors.append)
        return said


@pytest.mark.parametrize("rows", [N, 1])
@pytest.mark.parametrize("frontend", FRONTENDS)
def test_centered_predictions_are_deviations_from_the_mean_of_the_batch(frontend: str, rows: int) -> None:
    found = []
    for synthesizer in (Twice, "zero"):
        net = cut(Cell, synthesizer=synthesizer, frontend=frontend, training=Training(centered=True))
        loss, state = window(net, 0, Cell.begin(rows))
        loss.backward()
        found.append(gradients(net)["inner.bias"].clone())
        if synthesizer is Twice:
            window(net, 1, state)[0].backward()
            (error,) = net.dni.synthesizers["time0"].errors
            assert error.any() and (rows == 1 or error.sum(0).abs().max() < 1e-12)
    model = Cell()
    last = model(Cell.begin(rows), X[:rows, :T])["last"]
    said = 2 * last.detach()
    said -= said.mean(0) if rows > 1 else 0  # of one row nothing would be left
    (last * said).sum().div(rows).backward()
    torch.testing.assert_close(found[0] - found[1], gradients(model)["inner.bias"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_means_of_narrow_predictions(dtype: torch.dtype) -> None:
    """Their sum is more than float16 holds, and bfloat16 would round it."""
    rows = (1000 + torch.arange(-32.0, 32.0)[:, None]).to(dtype).repeat(16, 2)
    said = centered(rows)
    assert said.dtype == dtype
    torch.testing.assert_close(said.double(), rows.double() - rows.double().mean(0), rtol=1e-2, atol=1e-2)


def test_in_time_the_unit_of_targets_does_not_follow_them() -> None:
    net: Any = cut(Stack, cuts=["one"], synthesizer="mlp", training=Training(scale="rms"))
    assert [crossing.scale for crossing in net.dni.crossings.values() if crossing.in_time] == [1.0, 1.0]
    assert [crossing.scale for crossing in net.dni.crossings.values() if not crossing.in_time] == ["rms"]


def test_metrics_are_of_what_is_said() -> None:
    """Deviations beside deviations, where they are centered."""
    net: Any = cut(Cell, synthesizer=Twice, training=Training(centered=True))
    _, state = window(net, 0, Cell.begin())
    assert isinstance(state, Tensor)
    loss, _ = window(net, 1, state)
    before = state.detach().requires_grad_()
    own, after = window(Cell(), 1, before)
    assert isinstance(after, Tensor)
    (truth,) = torch.autograd.grad(own + (after * centered(2 * after.detach()) / N).sum(), before)
    loss.backward()
    said = centered(2 * before.detach()) / N
    cosine = torch.cosine_similarity(centered(truth).flatten(), said.flatten(), 0)
    assert abs(net.dni.metrics()["time0"]["cosine"] - cosine.item()) < 1e-6


def test_those_chosen_by_name_are_centered() -> None:
    for synthesizer, asked, wanted in (
        ("mlp", None, True),
        ("mlp", False, False),
        ("least_squares", None, True),
        (Twice, None, False),
        (Twice, True, True),
    ):
        net: Any = cut(Cell, synthesizer=synthesizer, training=Training(centered=asked))
        assert net.dni.time0.centered is wanted


def test_least_squares_learns_whole_targets_and_says_deviations() -> None:
    """By itself, for errors of deviations would not tell it the rest."""
    example = torch.randn(8, 1, dtype=DOUBLE), torch.zeros(8, 1, dtype=DOUBLE)
    net: Any = dni_fx.transform(Linear(0.5), example, state=True, synthesizer="least_squares(ridge=1e-9)").train()
    state = torch.zeros(8, 1, dtype=DOUBLE)
    for _ in range(100):
        y, state = net(torch.randn(8, 1, dtype=DOUBLE), state)
        y.mean().backward()
    weight, bias = net.dni.synthesizers["time0"].weight.flatten().tolist()
    assert abs(weight) < 1e-6 and abs(bias - 0.5) < 1e-6  # of the next window's loss; from there on nothing is said
    assert net.dni.time0.predicted(state).abs().max() < 1e-6


def test_what_auto_is_for_a_large_state() -> None:
    for features, wanted in ((2048, "least_squares"), (2049, "mlp")):
        example = torch.zeros(2, features), torch.zeros(2, features)
        net: Any = dni_fx.transform(Linear(0.5).float(), example, state=True, verify=False)
        assert net.dni.plan.rewrite.synthesizers == {"time0": wanted}


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_what_auto_is(frontend: str) -> None:
    for dtype, wanted in ((DOUBLE, "least_squares"), (torch.bfloat16, "mlp")):
        example = X[:, :T].to(dtype), tuple(tensor.to(dtype) for tensor in Lstm.begin())
        net: Any = dni_fx.transform(Lstm().to(dtype), example, state=True, frontend=frontend)
        assert net.dni.plan.rewrite.synthesizers == {"time0": wanted}


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_a_plan_repeats_it(frontend: str) -> None:
    example = (X[:, :T], Lstm.begin())
    for options in ({}, {"cuts": ["lstm"], "unlock": "none"})[: 1 if frontend == "modules" else 2]:
        plan = cut(Lstm, frontend=frontend, **options).dni.plan
        again = dni_fx.transform(Lstm(), example, **(options | {"cuts": plan}))
        assert again.dni.plan.states == plan.states and len(again.dni.plan.cuts) == len(plan.cuts)
        assert dni_fx.check(again, example)


def test_reset_of_all_and_of_more_and_more_rows() -> None:
    net = cut(Lstm)
    window(net, 0, Lstm.begin())
    net.dni.reset(torch.tensor([True, False, False]))
    net.dni.reset(torch.tensor([False, True, False]))
    assert net.dni.time0.memory.ended.tolist() == [True, True, False]
    net.dni.reset()
    assert net.dni.time0.memory.ended.all()


def trained(net: Any, make: Any) -> dict[str, Tensor]:
    """All gradients of four windows, in which one row begins anew by the mask, and then all do."""
    generator, state = torch.Generator().manual_seed(2), make.begin()
    with torch.no_grad():
        for parameter in net.dni.parameters():  # the last layer begins at zero
            parameter.copy_(torch.randn(parameter.shape, dtype=DOUBLE, generator=generator))
    for k in range(WINDOWS):
        loss, state = window(net, k, state)
        loss.backward()
        if k == 1:
            net.dni.reset(torch.tensor([False, True, False]))
        if k == 2:
            net.dni.reset()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo looks at tensors
@pytest.mark.parametrize(("frontend", "options"), [case for case in WITH_CUTS if len(case[1]) != 1], ids=str)
def test_compiled_and_plain_train_alike(options: dict[str, Any], frontend: str) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    nets = [cut(Cell, frontend=frontend, **options, **compiled) for compiled in ({}, {"compile": {"backend": counter}})]
    plain, compiled = (trained(net, Cell) for net in nets)
    assert plain.keys() == compiled.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(compiled[name], gradient, msg=name)
    assert (
        counter.frame_count == 2
    )  # what is between the ends, with a state that carries no gradient, and one that does
    assert dni_fx.check(nets[1], (Cell.begin(), X[:, :T]))


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_windows_are_not_one_graph() -> None:
    torch._dynamo.reset()
    net = cut(Cell, unlock="none", compile={"backend": "eager", "fullgraph": True})
    with pytest.raises(Exception, match="remembers the window before"):
        window(net, 0, Cell.begin())


# ------------------------------------------------------------------------------- what people do besides
def test_it_is_reported() -> None:
    text = Console(width=200, record=True, file=io.StringIO())
    text.print(plan_table(cut(Lstm).dni.plan))
    assert "time0: state 2x3x4, state 2x3x4, cut in time, synthesizer least_squares" in text.export_text()


def test_who_looks_at_gradients_above_takes_nothing_away() -> None:
    found = []
    for looks in (False, True):
        net = cut(Lstm, synthesizer=Constant)
        loss, _ = window(net, 0, Lstm.begin())
        if looks:
            torch.autograd.grad(loss, net.get_parameter("head.weight"), retain_graph=True)
        loss.backward()
        found.append(gradients(net))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


class Two(nn.Module):
    """Two outputs, of which the loss takes one; the same tensor at two places; dropout; and a buffer that moves."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.norm = nn.GRUCell(2, H), nn.BatchNorm1d(H)
        self.one, self.two, self.drop = nn.Linear(H, 1), nn.Linear(H, 1), nn.Dropout(dropout)
        self.double()

    def forward(self, x: Tensor, h: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        h = self.drop(self.cell(x, h))
        y = self.one(self.drop(self.norm(h)))
        return (y, y, self.two(h)), h


def two(dropout: float = 0.0, **training: Any) -> nn.Module:
    example = X[:, 0], torch.zeros(N, H, dtype=DOUBLE)
    options: Any = {"state": True, "synthesizer": Exact, "training": Training(**training)}
    return dni_fx.transform(Two(dropout), example, **options).train()


def test_an_output_that_the_loss_does_not_use() -> None:
    for horizon in (1, 2):
        net = dni_fx.transform(
            Two(),
            (X[:, 0], torch.zeros(N, H, dtype=DOUBLE)),
            state=True,
            synthesizer="least_squares",
            training=Training(horizon=horizon),
        ).train()
        state = torch.zeros(N, H, dtype=DOUBLE)
        for k in range(4):
            (y, _, _), state = net(X[:, k], state)
            y.square().mean().backward()
        assert net.dni.synthesizers["time0"].weight.any() or net.dni.metrics()["time0"]["steps"]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_windows_are_run_again_as_they_were(dropout: float) -> None:
    """With the same dropout masks, and as if they had not been: buffers and random numbers go on."""
    net, twin = two(dropout, horizon=4), two(dropout)
    heard = []
    for one in (net, twin):
        torch.manual_seed(3)
        state, states, losses = torch.zeros(N, H, dtype=DOUBLE), [], []
        for k in range(5):
            (y, _, _), following = one(X[:, k], state)
            states.append(following)
            losses.append(y.square().mean())
            losses[-1].backward()
            state = following if k < 3 else torch.zeros(N, H, dtype=DOUBLE)
        heard.append(torch.rand(()))
    assert heard[0] == heard[1]
    assert torch.equal(net.get_buffer("norm.running_mean"), twin.get_buffer("norm.running_mean"))
    torch.manual_seed(3)
    model, state, total, states = Two(dropout).train(), torch.zeros(N, H, dtype=DOUBLE), torch.zeros(()), []
    torch.manual_seed(3)
    for k in range(4):
        (y, _, _), state = model(X[:, k], state)
        state = state.clone()
        state.retain_grad()
        states.append(state)
        total = total + y.square().mean()
    total.backward()
    targets = net.dni.synthesizers["time0"].targets
    for target, state in zip(targets, states[:-1], strict=True):
        torch.testing.assert_close(target, state.grad)


def test_a_horizon_waits_for_its_gradients_and_forgets_calls_that_fail() -> None:
    every, once = two(horizon=2), two(horizon=2)
    state, other = (torch.zeros(N, H, dtype=DOUBLE) for _ in range(2))
    total = torch.zeros(())
    for k in range(8):
        if k == 1:
            with pytest.raises(RuntimeError):
                every(X[:, 0, :1], state)
        (y, _, _), state = every(X[:, k], state)
        y.square().mean().backward()
        (y, _, _), other = once(X[:, k], other)
        total = total + y.square().mean()
        if k % 4 == 3:
            total.backward()
            total = torch.zeros(())
    known, late = (net.dni.synthesizers["time0"].targets for net in (every, once))
    assert len(late) == 3  # at the two calls after the first backward pass
    for target in late:
        assert any(torch.allclose(target, expected) for expected in known)
    assert dni_fx.check(every, (X[:, 0], torch.zeros(N, H, dtype=DOUBLE)))


class Leaning(Exact):
    """Says the same of every row."""

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
        return super().forward(activation, context) + 0.7 * len(activation)


def test_a_horizon_mixes_discounts_and_ends() -> None:
    """Against the recursion by hand: trace and discount between windows, a prediction at the end, a row that ends."""
    discount, trace, keep = 0.5, 0.25, 0.9
    training = Training(horizon=2, trace=trace, discount=discount)
    example = torch.zeros(2, 1, dtype=DOUBLE), torch.zeros(2, 1, dtype=DOUBLE)
    net = dni_fx.transform(Linear(keep), example, state=True, synthesizer=Leaning, training=training).train()
    state = torch.zeros(2, 1, dtype=DOUBLE)
    for k in range(5):
        y, state = net(torch.ones(2, 1, dtype=DOUBLE), state)
        if k == 2:
            net.dni.reset(torch.tensor([True, False]))
        y.sum().backward()
    last = keep * (1 + discount * 0.7)  # at the state before the last window of the horizon
    first = keep * (1 + discount * (trace * last + (1 - trace) * 0.7))
    found = [(target + 0.7).flatten().tolist() for target in net.dni.synthesizers["time0"].targets]
    assert found == [pytest.approx(rows) for rows in ([last, last], [keep, first], [0.0, last])]


def test_a_copy_in_the_middle_of_a_run_and_a_pickled_one() -> None:
    for options in ({"training": Training(auxiliary=1.0)}, {"training": Training(horizon=2), "frontend": "export"}):
        net, state = cut(Cell, synthesizer="mlp", **options), Cell.begin()
        for k in range(3):
            loss, state = window(net, k, state)
            loss.backward()
        copies = [copy.deepcopy(net), pickle.loads(pickle.dumps(net))]
        for k in range(3, 6):
            for one in (net, *copies):
                one.zero_grad()
                loss, following = window(one, k % WINDOWS, state)
                loss.backward()
            state = following
        for one in copies:
            assert one.dni.metrics()["time0"]["steps"] == net.dni.metrics()["time0"]["steps"]
            for p, q in zip(one.parameters(), net.parameters(), strict=True):
                assert (p.grad is None) == (q.grad is None) and (p.grad is None or torch.equal(p.grad, q.grad))


@pytest.mark.parametrize("synthesizer", ["least_squares", "mlp"])
def test_autocast(synthesizer: str) -> None:
    """What is handed on may be narrower than the zeros that begin a sequence."""
    model = Lstm().float()
    example = X[:, :T].float(), pytree.tree_map(torch.Tensor.float, Lstm.begin())
    net = dni_fx.transform(model, example, state=True, synthesizer=synthesizer).train()
    for k in range(6):
        if k % 3 == 0:
            state = pytree.tree_map(torch.Tensor.float, Lstm.begin())
        with torch.autocast("cpu", torch.bfloat16):
            y, state = net(X[:, :T].float(), state)
        y.float().square().mean().backward()
    assert net.dni.metrics()["time0"]["steps"] == 5


def test_a_loss_that_is_not_finite_is_dropped() -> None:
    for options in ({}, {"training": Training(horizon=2)}):
        net, state = cut(Lstm, synthesizer="least_squares", **options), Lstm.begin()
        for k in range(4):
            loss, state = window(net, k, state)
            (loss * (float("inf") if k == 1 else 1.0)).backward()
        assert net.dni.metrics()["time0"]["skipped"] >= 1
        assert net.dni.synthesizers["time0"].weight.isfinite().all()


def test_streams_in_turn_teach_nothing_and_that_is_said() -> None:
    net, streams = cut(Lstm), [Lstm.begin(), pytree.tree_map(lambda t: t + 1.0, Lstm.begin())]
    with pytest.warns(UserWarning, match="has learned nothing: no row of the state was zero"):
        for k in range(24):
            streams[k % 2] = window(net, 0, streams[k % 2])[1]


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
            dni_fx.transform(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)), torch.rand(3, 4), training=training)
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
    (Lstm, True, {"classes": 3}, "labels, context and warm-up are for cuts in depth"),
    (Lstm, True, {"training": Training(warmup=2)}, "labels, context and warm-up are for cuts in depth"),
    (Lstm, True, {"training": Training(scale="rms")}, "is for cuts in depth"),
    (Lstm, True, {"objective": "throughput"}, "are for cuts in depth"),
    (Lstm, True, {"synthesizer": "lstm"}, "carries a state of its own"),
]


@pytest.mark.parametrize(("make", "state", "options", "message"), REFUSED)
def test_what_is_wrong_is_said(make: Any, state: Any, options: dict[str, Any], message: str) -> None:
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


class Memory(nn.Module):
    """Its state has three axes; and it writes to it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(H, H)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = self.inner(state.mul_(0.5) + x.sum(1, keepdim=True))
        return state.sum(-1), state


def test_a_state_that_is_written_to() -> None:
    net = dni_fx.transform(Memory(), (torch.zeros(5, 1, H), torch.zeros(5, 3, H)), state=True).train()
    state = torch.zeros(5, 3, H)
    for _ in range(3):
        y, state = net(torch.randn(5, 1, H), state)
        y.sum().backward()
    assert net.dni.metrics()["time0"]["steps"] == 2


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
