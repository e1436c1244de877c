"""SegmentOptimizer: what each event does in each state, as the table above the class says."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dni_fx
from dni_fx import DniFxError, SegmentOptimizer, Training
from dni_fx.runtime.stepping import Pass

X = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
ALL = {0, 1, 2}


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1)


class Run:
    """A net of three segments; writes down which of them step."""

    def __init__(self, **options: Any) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
        self.net: Any = dni_fx.transform(model, X, cuts=["1", "3"], optimizer=sgd, step="segment", **options).train()
        optimizer = self.net.dni.optimizer
        assert isinstance(optimizer, SegmentOptimizer)
        self.optimizer, self.stepped = optimizer, []
        for index, own in enumerate(optimizer.optimizers):
            own[0].register_step_post_hook(lambda *_, index=index: self.stepped.append(index))

    def forward(self) -> Tensor:
        loss: Tensor = self.net(X).square().mean()
        return loss

    @property
    def state(self) -> Pass:
        return self.optimizer._pass

    @property
    def passes(self) -> list[int]:
        return self.optimizer._passes

    def has_gradients(self) -> set[int]:
        return {index for index in ALL if self.optimizer._with_gradients(index)}


def in_state(state: Pass, **options: Any) -> Run:
    """A run that has come to a state in the middle of its second pass."""
    run = Run(**options)
    run.forward().backward()
    if state is not Pass.IDLE:
        run.loss = run.forward()  # type: ignore[attr-defined]
    if state is Pass.ZEROED:
        run.optimizer.zero_grad()
    assert run.state is state
    run.stepped.clear()
    return run


# For each pair: the state that follows, the passes of each segment then, and the segments that step, accumulate=1.
PRE, POST, ZERO, END = "pre_backward", "post_backward", "zero_grad", "post_loss_backward"
TABLE: dict[tuple[str, Pass], tuple[Pass, list[int], list[int]]] = {
    (PRE, Pass.IDLE): (Pass.IDLE, [1, 1, 1], []),
    (PRE, Pass.RUNNING): (Pass.RUNNING, [2, 2, 1], []),
    (PRE, Pass.ZEROED): (Pass.IDLE, [2, 2, 2], [2]),
    (POST, Pass.IDLE): (Pass.RUNNING, [2, 1, 1], [0]),
    (POST, Pass.RUNNING): (Pass.RUNNING, [3, 2, 1], [0]),
    (POST, Pass.ZEROED): (Pass.ZEROED, [3, 2, 1], [0]),
    (ZERO, Pass.IDLE): (Pass.IDLE, [1, 1, 1], []),
    (ZERO, Pass.RUNNING): (Pass.ZEROED, [2, 2, 1], []),
    (ZERO, Pass.ZEROED): (Pass.ZEROED, [2, 2, 1], []),
    (END, Pass.IDLE): (Pass.IDLE, [1, 1, 1], []),  # nothing has new gradients: no pass
    (END, Pass.RUNNING): (Pass.IDLE, [2, 2, 1], []),
    (END, Pass.ZEROED): (Pass.IDLE, [2, 2, 1], []),
}
EVENTS: dict[str, Callable[[SegmentOptimizer], None]] = {
    PRE: lambda optimizer: optimizer.pre_backward(0),
    POST: lambda optimizer: optimizer.post_backward(0),
    ZERO: lambda optimizer: optimizer.zero_grad(),
    END: lambda optimizer: optimizer.post_loss_backward(),
}


@pytest.mark.parametrize(("event", "state"), TABLE)
def test_every_pair_of_the_table(event: str, state: Pass) -> None:
    run = in_state(state)
    EVENTS[event](run.optimizer)
    assert (run.state, run.passes, run.stepped) == TABLE[event, state]
    assert (run.state is Pass.IDLE) == (not run.optimizer._reached)


def test_the_table_has_every_pair() -> None:
    assert {*TABLE} == {(event, state) for event in EVENTS for state in Pass}


@pytest.mark.parametrize("state", [Pass.RUNNING, Pass.ZEROED])
def test_the_backward_pass_of_the_loss_ends_the_pass(state: Pass) -> None:
    run: Any = in_state(state)
    run.loss.backward()
    assert (run.state, run.passes, run.stepped) == (Pass.IDLE, [2, 2, 2], [2])
    assert not run.has_gradients()


@pytest.mark.parametrize("options", [{"unlock": "none"}, {"training": Training(warmup=9)}])
def test_without_local_backward_passes_all_segments_end_in_that_of_the_loss(options: dict[str, Any]) -> None:
    run = in_state(Pass.IDLE, **options)
    loss = run.forward()
    assert run.state is Pass.IDLE
    loss.backward()
    assert (run.state, run.passes, run.stepped) == (Pass.IDLE, [2, 2, 2], [0, 1, 2])


def test_two_forward_passes_before_one_backward_pass() -> None:
    """The last segment has one pass, the others two."""
    run = Run()
    (run.forward() + run.forward()).backward()
    assert (run.state, run.passes, run.stepped) == (Pass.IDLE, [2, 2, 1], [0, 1, 0, 1, 2])


def test_one_backward_pass_through_two_forward_passes_has_one_end() -> None:
    run = Run()
    ends: list[None] = []
    run.optimizer.post_loss_backward = lambda: ends.append(None)  # type: ignore[method-assign]
    torch.stack([run.forward(), run.forward()]).sum().backward()
    assert len(ends) == 1


def test_zero_grad_frees_nothing_that_accumulates() -> None:
    run = Run(accumulate=2)
    run.forward().backward()
    assert run.passes == [1, 1, 1] and run.has_gradients() == ALL and not run.stepped
    run.optimizer.zero_grad()
    assert run.has_gradients() == ALL and run.state is Pass.IDLE
    run.forward()
    assert run.has_gradients() == {2} and run.stepped == [0, 1]
    run.optimizer.zero_grad()
    assert run.has_gradients() == {2} and run.state is Pass.ZEROED


def test_a_skipped_batch_is_a_pass_of_the_last_segment_too() -> None:
    run = Run(accumulate=2)
    run.forward().backward()
    run.forward()  # skipped
    run.optimizer.zero_grad()
    assert (run.state, run.passes) == (Pass.ZEROED, [2, 2, 1])
    loss = run.forward()
    assert (run.state, run.passes, run.stepped) == (Pass.RUNNING, [3, 3, 2], [0, 1, 2])
    loss.backward()
    assert run.passes == [3, 3, 3]


def test_a_look_at_gradients_is_no_pass_of_the_last_segment() -> None:
    run: Any = in_state(Pass.RUNNING)
    torch.autograd.grad(run.loss, [run.net.get_parameter("4.weight")], retain_graph=True)
    assert (run.state, run.passes) == (Pass.IDLE, [2, 2, 1])
    run.loss.backward()
    assert (run.state, run.passes, run.stepped) == (Pass.IDLE, [2, 2, 2], [2])


def test_a_backward_pass_of_the_loss_that_fails_has_no_end() -> None:
    def fail(_: Tensor) -> None:
        raise ValueError("no")

    run: Any = in_state(Pass.RUNNING)
    handle = run.net.get_parameter("4.bias").register_hook(fail)
    with pytest.raises(ValueError, match="no"):
        run.loss.backward()
    handle.remove()
    assert run.state is Pass.RUNNING
    run.optimizer.zero_grad()
    assert run.state is Pass.ZEROED and not run.has_gradients()
    run.forward().backward()
    assert (run.state, run.passes) == (Pass.IDLE, [3, 3, 3])


def test_a_late_gradient_is_an_error_and_freed() -> None:
    run: Any = in_state(Pass.RUNNING)
    with pytest.raises(DniFxError, match=r"a gradient came to 0\.weight after its segment had stepped"):
        (run.loss + run.net.get_parameter("0.weight").square().sum()).backward()
    assert run.state is Pass.IDLE and not run.has_gradients()


def test_an_optimizer_that_is_removed_steps_no_more() -> None:
    run: Any = in_state(Pass.RUNNING)
    run.optimizer.remove()
    run.forward()
    assert run.net.dni.optimizer is None and not run.stepped and run.state is Pass.RUNNING
