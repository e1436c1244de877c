"""The table of `SegmentOptimizer`: what each event does in each state of a pass."""

import copy
from typing import Any

import pytest
import torch
from nets import perceptron
from torch import Tensor, nn

import dni_fx
from dni_fx.runtime.stepping import Pass

X = torch.rand(6, 8)


class Loop:
    """A net of three segments that steps by itself, and the events of a training loop."""

    def __init__(self, **options: Any) -> None:
        make = options.pop("make", lambda parameters: torch.optim.SGD(parameters, 0.1))
        self.net = dni_fx.transform(perceptron(), X, cuts=3, step="segment", optimizer=make, **options).train()
        self.optimizer: Any = self.net.dni.optimizer
        self.loss: Tensor | None = None

    def forward(self) -> None:
        self.loss = self.net(X).square().mean()

    def backward(self) -> None:
        assert self.loss is not None
        self.loss.backward()

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def run(self, *events: str) -> tuple[Pass, list[int]]:
        """The state after these events, and the passes of each segment."""
        for event in events:
            getattr(self, event)()
        return self.optimizer._pass, self.optimizer._passes


@pytest.mark.parametrize(
    ("events", "state", "passes"),
    [
        ((), Pass.IDLE, [0, 0, 0]),
        (("zero_grad",), Pass.IDLE, [0, 0, 0]),
        (("forward",), Pass.RUNNING, [1, 1, 0]),
        (("forward", "forward"), Pass.RUNNING, [2, 2, 0]),
        (("forward", "backward"), Pass.IDLE, [1, 1, 1]),
        (("forward", "zero_grad"), Pass.ZEROED, [1, 1, 0]),
        (("forward", "zero_grad", "zero_grad"), Pass.ZEROED, [1, 1, 0]),
        (("forward", "zero_grad", "backward"), Pass.IDLE, [1, 1, 1]),
        (("forward", "zero_grad", "forward"), Pass.RUNNING, [2, 2, 1]),  # the last segment counts the skipped batch
        (("forward", "zero_grad", "forward", "backward"), Pass.IDLE, [2, 2, 2]),
    ],
)
def test_with_local_backward_passes(events: tuple[str, ...], state: Pass, passes: list[int]) -> None:
    assert Loop().run(*events) == (state, passes)


@pytest.mark.parametrize(
    ("events", "passes"),
    [
        (("forward",), [0, 0, 0]),
        (("forward", "zero_grad"), [0, 0, 0]),
        (("forward", "backward"), [1, 1, 1]),
        (("forward", "zero_grad", "backward"), [1, 1, 1]),
        (("forward", "zero_grad", "forward", "backward"), [1, 1, 1]),  # a skipped batch gave no gradient
    ],
)
def test_without_local_backward_passes_the_state_stays_idle(events: tuple[str, ...], passes: list[int]) -> None:
    assert Loop(unlock="none").run(*events) == (Pass.IDLE, passes)


def test_accumulated_passes_step_together() -> None:
    """Each segment steps at its second pass, and frees its gradients then, not before."""
    loop = Loop(accumulate=2)
    before = [p.detach().clone() for p in loop.net.get_submodule("8").parameters()]
    loop.run("forward", "backward", "zero_grad")
    assert all(torch.equal(p, q) for p, q in zip(loop.net.get_submodule("8").parameters(), before, strict=True))
    assert all(p.grad is not None for p in loop.net.get_submodule("8").parameters())
    loop.run("forward", "backward")
    assert not all(torch.equal(p, q) for p, q in zip(loop.net.get_submodule("8").parameters(), before, strict=True))
    assert all(p.grad is None for p in loop.net.get_submodule("8").parameters())


class Recorder:
    """A listener that writes down each event."""

    def __init__(self, name: str, events: list[tuple[str, str, int]]) -> None:
        self.name, self.events = name, events

    def pre_backward(self, index: int) -> None:
        self.events.append((self.name, "pre_backward", index))

    def post_backward(self, index: int) -> None:
        self.events.append((self.name, "post_backward", index))

    def post_forward(self, index: int, outputs: Any) -> None:
        self.events.append((self.name, "post_forward", index))


@pytest.mark.parametrize("unlock", ["backward", "none"])
def test_listeners_are_called_in_their_order_at_every_event(unlock: str) -> None:
    net = dni_fx.transform(perceptron(), X, cuts=3, unlock=unlock).train()
    events: list[tuple[str, str, int]] = []
    for segment in net.dni.segments:
        segment.listeners = [Recorder("first", events), Recorder("second", events)]
    net(X).square().mean().backward()
    kinds = ("pre_backward", "post_backward") if unlock == "backward" else ()
    expected = [(name, kind, index) for index in (0, 1) for kind in kinds for name in ("first", "second")]
    assert events == expected


def test_a_segment_without_gradient_in_the_warm_up_is_reported_after_forward() -> None:
    """In the warm-up no segment runs a backward pass of its own: the loss's goes through the outputs."""
    training = dni_fx.Training(warmup=1)
    net = dni_fx.transform(perceptron(), X, cuts=2, training=training).train()
    events: list[tuple[str, str, int]] = []
    net.dni.segments[0].listeners = [Recorder("one", events)]
    net(X).square().mean().backward()
    assert events == [("one", "post_forward", 0)]
    net(X).square().mean().backward()
    assert events[1:] == [("one", "pre_backward", 0), ("one", "post_backward", 0)]


def test_a_copy_keeps_listeners_and_has_an_optimizer_of_its_own() -> None:
    loop = Loop()
    copied: nn.Module = copy.deepcopy(loop.net)
    assert copied.dni.optimizer is not loop.optimizer
    for segment in copied.dni.segments:
        assert segment.listeners[1:] == [copied.dni.averaging, copied.dni.optimizer]
