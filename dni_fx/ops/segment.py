"""One segment while the net runs: its parameters, its local backward pass, the share of the true gradient."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dni_fx.errors import BackwardOrderError, DniFxError
from dni_fx.ops.accumulation import Accumulation
from dni_fx.ops.forward_pass import ForwardPass, LocalPass, unfinished
from dni_fx.ops.gradients import without_nonfinite
from dni_fx.ops.layout import Layout
from dni_fx.ops.precision import without_autocast
from dni_fx.ops.steps import CountsSteps
from dni_fx.settings import Mix, Training

__all__ = ["TWICE", "Accumulated", "Segment", "SegmentListener", "check_not_erased"]

_VALUES_READ = 4  # gradients of a segment whose values are read, to see later whether they were erased


class SegmentListener(Protocol):
    """Methods that a segment calls while it runs, each with the index of the segment."""

    def pre_backward(self, index: int) -> None:
        """Before the local backward pass."""

    def post_backward(self, index: int) -> None:
        """After the local backward pass: the parameters have their gradients."""

    def post_forward(self, index: int, outputs: Sequence[Tensor]) -> None:
        """After a forward pass without a local backward pass: that of the loss will go through `outputs`."""


@dataclass
class Accumulated:
    """The gradient of a parameter at the end of a local backward pass."""

    parameter: nn.Parameter
    version: int
    nonzero: Tensor | None = None


class Segment(CountsSteps):
    """The state of one segment, and of the cut above it, while the net runs.

    Holds the segment's parameters without owning them: state_dict does not list them twice.

    Attributes:
        mix: Share of the true gradient that is handed upstream; or its start, its end, and the steps between them.
        warmup: Steps at the beginning in which that share is 1.
        clip: Largest norm of one sample's target; 0: no limit.
        steps: Training steps so far, where the share varies.
        skipped: How often a prediction or a target was dropped because it was not finite.
        index: The number of the segment, from below.
        held: Parameters that the local backward pass gives gradients to, the smallest first.
        layouts: Where the samples are in each tensor that crosses the cut above; empty: all are batch first.
        listeners: Called in this order at every event. The averaging of gradients over processes stands before an
            optimizer, which uses the averages.
        generation: How often the gradients were used and freed.
        accumulation: Finds out whether the loop accumulates the gradients of several batches.
        forward_pass: While the net runs forward in train mode.
        diverged: The place, among the crossing tensors, of a prediction that was not finite though its activation was.
        unfinished: Passes whose gradients are there, and whose loss has had no backward pass.
    """

    skipped: Tensor
    accumulation: Accumulation
    forward_pass: ForwardPass | None = None
    diverged: int | None = None
    unfinished: Sequence[LocalPass] = ()
    layouts: tuple[Layout, ...] = ()  # also in a net that an older version pickled

    def __init__(self, mix: Mix = 0.0, training: Training = Training(), index: int = 0) -> None:  # noqa: B008  # frozen
        super().__init__()
        self.mix = mix
        self.warmup = training.warmup
        self.clip = training.clip or 0.0
        self.steps = 0
        self.register_buffer("skipped", torch.zeros((), dtype=torch.int64), persistent=False)
        self.index = index
        self.held: tuple[nn.Parameter, ...] = ()
        self.listeners: list[SegmentListener] = []
        self.generation = 0
        self.accumulation = Accumulation()

    def __getstate__(self) -> dict[str, Any]:
        """A copy of a net has no optimizer: its parameters are others."""
        copied = [listener for listener in self.listeners if not isinstance(listener, torch.optim.Optimizer)]
        return self.__dict__ | {"listeners": copied, "forward_pass": None, "unfinished": (), "diverged": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy, also one that an older version pickled."""
        super().__setstate__({"accumulation": Accumulation()} | state)

    def hold(self, parameters: Iterable[nn.Parameter]) -> None:
        """Set the parameters that the local backward pass gives gradients to."""
        self.held = tuple(sorted(parameters, key=lambda p: p.numel()))

    def layout(self, index: int) -> Layout:
        """Where the samples are in the tensor with this index among those that cross the cut above."""
        return self.layouts[index] if self.layouts else Layout()

    def run_backward(self, roots: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Run the local backward pass, from `roots` with their `gradients`.

        Raises:
            BackwardOrderError: If gradients are there of a forward pass that had no backward pass.
        """
        self.unfinished = unfinished(self.unfinished)
        with without_autocast(self.skipped.device.type):  # a backward pass takes the dtypes that forward took
            for listener in self.listeners:
                listener.pre_backward(self.index)
            self.accumulation.pre_local_backward()
            if roots:
                _go_backward(roots, gradients)
            for listener in self.listeners:
                listener.post_backward(self.index)

    def post_forward(self, outputs: Sequence[Tensor]) -> None:
        """After a forward pass without a local backward pass."""
        for listener in self.listeners:
            listener.post_forward(self.index, outputs)

    def post_step(self) -> None:
        """After an optimizer has used and freed the gradients: they count as erased no more."""
        self.generation += 1

    def accumulated(self) -> list[Accumulated]:
        """The gradients that the parameters have now; of the smallest ones, also whether each is not zero."""
        found = [Accumulated(p, p.grad._version) for p in self.held if p.grad is not None]
        for one in found[:_VALUES_READ]:
            one.nonzero = one.parameter.grad.any()  # type: ignore[union-attr]  # stays on the device: no wait
        return found

    def begin_to_wait(self, accumulated: Sequence[Accumulated]) -> None:
        """Remember the gradients of a local backward pass until the backward pass of the loss comes."""
        if self.forward_pass is not None and accumulated:
            self.forward_pass.segments.append(self)
            self.unfinished = [*self.unfinished, LocalPass(self.forward_pass.record, accumulated)]

    def post_drop(self, place: int, activation: Tensor) -> None:
        """After a prediction was dropped because it was not finite."""
        if self.diverged is None and bool(activation.isfinite().all()):
            self.diverged = place

    @property
    def in_state_dict(self) -> bool:  # type: ignore[override]
        """Whether a state_dict has the number of steps."""
        return self.varies

    @property
    def varies(self) -> bool:
        """Whether the share of the true gradient changes from step to step."""
        return isinstance(self.mix, tuple) or self.warmup > 0

    def next_mix(self) -> float:
        """The share of the true gradient in the step that begins."""
        if not self.varies:
            return float(self.mix)  # type: ignore[arg-type]
        if torch.compiler.is_compiling():
            raise DniFxError("a warm-up or a mix that changes cannot be compiled: compile after its last step")
        self.steps += 1
        done = self.steps - 1 - self.warmup
        if done < 0:
            return 1.0
        if not isinstance(self.mix, tuple):
            return float(self.mix)
        start, end, steps = self.mix
        return start + (end - start) * min(done / steps, 1.0)

    def keep_finite(self, gradient: Tensor) -> Tensor | None:
        """The gradient; one that is not finite is counted, and replaced as `without_nonfinite` does."""
        kept, ok = without_nonfinite(gradient)
        if ok is not True:
            self.skipped += 1 if ok is False else ~ok
        return kept


def _go_backward(roots: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    try:
        torch.autograd.backward(roots, gradients)
    except RuntimeError as error:
        if "second time" not in str(error):
            raise
        raise BackwardOrderError(
            "a segment's backward pass ran into a graph that an earlier backward pass has freed: with "
            "unlock='backward' an input must not carry gradient from an earlier call of the net, or from layers that "
            "are used elsewhere, too: detach it, or use unlock='none'"
        ) from error


TWICE = (
    "two backward passes through one forward pass: a synthesizer gets its target once, and with unlock='backward' the "
    "segments below the cuts have run their backward passes during forward. Add the losses, and call backward() once, "
    "on the sum"
)


def check_not_erased(accumulated: Sequence[Accumulated]) -> None:
    """Raise a BackwardOrderError if gradients of a local backward pass were erased before that of the loss."""
    erased = any(one.parameter.grad is None for one in accumulated)
    if not erased:
        # zero_grad(set_to_none=False) leaves zeros. Read values only of gradients that something wrote to: on a GPU
        # that waits for the device. A gradient that was zero before shows nothing.
        written = [
            gradient
            for one in accumulated
            if (gradient := one.parameter.grad) is not None
            and one.nonzero is not None
            and gradient._version != one.version
            and one.nonzero
        ]
        erased = bool(written) and not any(bool(gradient.any()) for gradient in written)
    if erased:
        raise BackwardOrderError(
            "zero_grad() was called between the forward and the backward pass, and erased gradients that "
            f'unlock="backward" had already accumulated during forward. {_remedy()}'
        )


def _remedy() -> str:
    """How to zero gradients in time, in the loop that runs."""
    for frame in sys._current_frames().values():  # the backward pass on a GPU has a thread of its own
        outer: FrameType | None = frame
        while outer is not None:
            if outer.f_globals.get("__name__", "").startswith(("lightning.pytorch.loops", "pytorch_lightning.loops")):
                return "Give the Trainer callbacks=[dni_fx.integrations.lightning.DecoupledCallback()]"
            outer = outer.f_back
    return (
        "Move zero_grad() before the forward pass: opt.zero_grad(); loss = criterion(net(x), y); loss.backward(); "
        "opt.step()"
    )
