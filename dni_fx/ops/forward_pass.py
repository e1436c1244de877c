"""Forward passes that have no backward pass: with unlock="backward" they leave gradients, which would count twice."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dni_fx.errors import BackwardOrderError

if TYPE_CHECKING:
    from dni_fx.ops.segment import Accumulated, Segment

__all__ = ["ForwardPass", "LocalPass", "unfinished"]


class Stage(enum.Enum):
    """What became of a forward pass."""

    OPEN = "its graph is there, and no backward pass of the loss has come"
    REACHED = "the backward pass of the loss has come"
    ABANDONED = "its graph was freed without a backward pass of the loss"


@dataclass
class Record:
    """The stage of a forward pass, for code that must not keep its graph."""

    stage: Stage = Stage.OPEN


class ForwardPass:
    """One forward pass in train mode. Only its graph holds this: it is deleted when the graph is freed.

    Attributes:
        record: The stage.
        running: Whether the net still runs forward: then backward passes are those of segments.
        segments: The segments that ran a local backward pass.
    """

    def __init__(self) -> None:
        self.record = Record()
        self.running = True
        self.segments: list[Segment] = []

    def reach(self, _gradient: Any = None) -> None:
        """A backward pass has come: that of the loss, if the net has run.

        Raises:
            BackwardOrderError: If gradients of an abandoned pass are there, too.
        """
        if self.running or self.record.stage is Stage.REACHED:
            return
        self.record.stage = Stage.REACHED
        for segment in self.segments:
            segment.unfinished = _without(segment.unfinished, self.record)
        if any(one.counts_twice() for segment in self.segments for one in segment.unfinished):
            for segment in self.segments:
                segment.unfinished = ()  # reported
            raise BackwardOrderError(ABANDONED)

    def end(self, outputs: Sequence[Tensor]) -> None:
        """The net has run; its `outputs` that carry gradient are given."""
        self.running = False
        for output in outputs if self.segments else ():
            output.register_hook(self.reach)
        if not outputs:  # nothing shows whether a backward pass comes
            self.reach()

    def __del__(self) -> None:
        if self.record.stage is Stage.OPEN:
            self.record.stage = Stage.ABANDONED


class LocalPass:
    """The gradients of a segment at the end of a local backward pass, until the backward pass of the loss comes."""

    def __init__(self, record: Record, accumulated: Sequence["Accumulated"]) -> None:
        self.record, self.accumulated = record, accumulated
        self.gradients = [one.parameter.grad for one in accumulated]
        self.followed = False  # whether the loss of a later pass has had its backward pass since

    def erased(self) -> bool:
        """Whether zero_grad() has erased the gradients; values are read only of gradients that were written to."""
        if any(one.parameter.grad is not grad for one, grad in zip(self.accumulated, self.gradients, strict=True)):
            return True
        written = [
            gradient
            for one, gradient in zip(self.accumulated, self.gradients, strict=True)
            if gradient is not None and gradient._version != one.version
        ]
        return bool(written) and not any(bool(gradient.any()) for gradient in written)

    def is_zero(self) -> bool:
        """Whether the gradients were zero, as those of a synthesizer that has learned nothing yet."""
        return not any(one.nonzero for one in self.accumulated)

    def counts_twice(self) -> bool:
        """Whether the pass was abandoned, and its gradients are still there."""
        return self.record.stage is Stage.ABANDONED and not self.is_zero() and not self.erased()


def unfinished(passes: Sequence[LocalPass]) -> list[LocalPass]:
    """Those of a segment's passes whose gradients are still there, before a local backward pass adds to them.

    Raises:
        BackwardOrderError: If the gradients of an abandoned pass were used.
    """
    found: list[LocalPass] = []
    for one in passes:
        if not one.erased():
            abandoned = one.record.stage is Stage.ABANDONED
            found = [other for other in found if not (abandoned and other.counts_twice())]  # one says as much as many
            found.append(one)
        elif one.followed and not one.is_zero():
            raise BackwardOrderError(ABANDONED)
    return found


ABANDONED = (
    "a forward pass in train mode had no backward pass, and the gradients that unlock='backward' had already "
    "accumulated in it were not erased: they count beside those of another pass. Call zero_grad() before each forward "
    "pass, also after a skipped batch; run a forward pass without a backward pass after net.eval() or under "
    "torch.no_grad()"
)


def _without(passes: Sequence[LocalPass], record: Record) -> list[LocalPass]:
    """The passes but for that of one forward pass; the earlier ones are marked as followed."""
    found = [one for one in passes if one.record is not record]
    if len(found) < len(passes):
        for one in found[: [one.record is record for one in passes].index(True)]:
            one.followed = True
    return found
