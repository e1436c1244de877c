"""The cut in time: with exact predictions windows train as the whole sequence does; with none, as truncated ones."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from windows import (
    DOUBLE,
    FRONTENDS,
    WINDOWS,
    Cell,
    Constant,
    Exact,
    H,
    Lstm,
    Memory,
    N,
    Stack,
    State,
    T,
    X,
    cut,
    gradients,
    whole,
    window,
)

import dni_fx
from dni_fx import DniFxError, Training


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


@pytest.mark.parametrize("unlock", ["backward", "none"])
@pytest.mark.parametrize("frontend", ["fx", "export"])
def test_each_segment_has_its_own_state_and_all_of_it_is_exact(
    frontend: str, unlock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With true gradients at the cut in depth, too, windows train as backpropagation does, end to end."""
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


def test_rows_that_begin_anew_teach_that_nothing_came_after(monkeypatch: pytest.MonkeyPatch) -> None:
    _, table = whole(Lstm)
    monkeypatch.setattr(Exact, "table", table)
    net = cut(Lstm, synthesizer=Exact)
    targets = net.dni.synthesizers["time0"].targets

    def target_after(change: Any) -> Tensor:
        net.dni.reset()
        _, state = window(net, 0, Lstm.begin())
        net.zero_grad()
        loss, _ = window(net, 1, change(state))
        targets.clear()
        loss.backward()
        return targets[0]

    plain = target_after(lambda state: state)
    assert plain.any(1).all()
    target = target_after(lambda state: net.dni.reset(torch.tensor([True, False, False])) or state)
    assert not target[0].any() and torch.allclose(target[1:], plain[1:])

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
    targets = net.dni.synthesizers["time0"].targets
    _, one = window(net, 0, Lstm.begin())
    _, two = window(net, 0, pytree.tree_map(lambda t: t + 1.0, Lstm.begin()))
    loss, _ = window(net, 1, one)
    loss.backward()
    assert not targets and two[0].any()


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


def test_reset_of_all_and_of_more_and_more_rows() -> None:
    net = cut(Lstm)
    window(net, 0, Lstm.begin())
    net.dni.reset(torch.tensor([True, False, False]))
    net.dni.reset(torch.tensor([False, True, False]))
    assert net.dni.time0.memory.ended.tolist() == [True, True, False]
    net.dni.reset()
    assert net.dni.time0.memory.ended.all()


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


def test_streams_in_turn_train_no_synthesizer_and_warn() -> None:
    net, streams = cut(Lstm), [Lstm.begin(), pytree.tree_map(lambda t: t + 1.0, Lstm.begin())]
    with pytest.warns(UserWarning, match="has learned nothing: no row of the state was zero"):
        for k in range(24):
            streams[k % 2] = window(net, 0, streams[k % 2])[1]


def test_a_state_that_is_written_to() -> None:
    net = dni_fx.transform(Memory(), (torch.zeros(5, 1, H), torch.zeros(5, 3, H)), state=True).train()
    state = torch.zeros(5, 3, H)
    for _ in range(3):
        y, state = net(torch.randn(5, 1, H), state)
        y.sum().backward()
    assert net.dni.metrics()["time0"]["steps"] == 2
