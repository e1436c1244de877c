"""Targets over several windows: they are the true gradients, and windows run again as they were."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from windows import (
    DOUBLE,
    FRONTENDS,
    WINDOWS,
    Cell,
    Exact,
    H,
    Linear,
    Lstm,
    N,
    Stack,
    State,
    T,
    Two,
    X,
    cut,
    two,
    whole,
    window,
)

import dni_fx
from dni_fx import DniFxError, Training


def targets_over(make: Any, horizon: int, trace: float = 1.0, **options: Any) -> dict[str, list[Tensor]]:
    """Targets of a sequence, first to last, where predictions are zero; then one window of the next sequence."""
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
    (targets,) = targets_over(make, WINDOWS, frontend=frontend).values()
    assert len(targets) == WINDOWS - 1
    for target, (_, future) in zip(targets, table[:-1], strict=True):
        torch.testing.assert_close(target, future, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("unlock", ["backward", "none"])
def test_over_a_horizon_with_cuts_in_depth(unlock: str) -> None:
    _, table = whole(Stack)
    found = targets_over(Stack, WINDOWS, cuts=["one"], unlock=unlock)
    sizes = [2 * H, 2 * H + 2]
    for index, targets in enumerate(found.values()):
        for target, (_, future) in zip(targets, table[:-1], strict=True):
            torch.testing.assert_close(target, future.split(sizes, 1)[index], rtol=1e-10, atol=1e-10)


def test_without_a_trace_they_are_those_of_single_windows() -> None:
    (one,), (other,) = targets_over(Cell, 1).values(), targets_over(Cell, WINDOWS, trace=0.0).values()
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
        ({"training": Training(horizon=2), "scaler": torch.amp.GradScaler("cpu")}, "leave scaler out, or set"),
    ],
)
def test_what_a_horizon_does_not_go_with(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DniFxError, match=message):
        cut(Lstm, **options)


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
    drawn = []
    for one in (net, twin):
        torch.manual_seed(3)
        state, states, losses = torch.zeros(N, H, dtype=DOUBLE), [], []
        for k in range(5):
            (y, _, _), following = one(X[:, k], state)
            states.append(following)
            losses.append(y.square().mean())
            losses[-1].backward()
            state = following if k < 3 else torch.zeros(N, H, dtype=DOUBLE)
        drawn.append(torch.rand(()))
    assert drawn[0] == drawn[1]
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


class WritesToItsState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.Linear(7, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h.mul_(0.5)
        h = torch.tanh(self.cell(torch.cat([x, h], 1)))
        return self.head(h), h


@pytest.mark.parametrize("frontend", ["fx", "export", "modules"])
def test_a_model_may_write_to_its_state(frontend: str) -> None:
    torch.manual_seed(0)
    x = torch.rand(5, 4)
    training = Training(horizon=3)
    net = dni_fx.transform(WritesToItsState(), (x, torch.zeros(5, 3)), state=True, frontend=frontend, training=training)
    h = torch.zeros(5, 3)
    for _ in range(5):
        net.zero_grad()
        y, h = net(x, h.clone())
        y.square().mean().backward()
    assert net.dni.metrics()["time0"]["target_norm"] > 0
