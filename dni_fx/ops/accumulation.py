"""Whether the training loop accumulates the gradients of several batches."""

from collections.abc import Iterable

import torch
from torch import nn

from dni_fx.errors import DniFxError

__all__ = ["Accumulation"]

_CLOSE = 0.05  # a measured factor this close to 1 is 1
_READ = 4  # gradients whose values are read: zero_grad(set_to_none=False) leaves zeros

_KEPT = "the gradients of an earlier batch are still there, and the next ones are added"
_UNKNOWN = (
    "predictions are of the undivided loss, so give dni_fx.transform the number k by which the loop divides each loss, "
    "accumulate=k (for a net that is made: net.dni.scale_with(accumulate=k)); accumulate=1 if it adds whole losses. If "
    "the loop does not accumulate, call zero_grad() before each forward pass"
)


class Accumulation:
    """Finds out, for one segment, whether the gradients of an earlier batch are kept for the next.

    Attributes:
        divisor: The number by which the loop divides the loss; None: not known.
        factor: The factor of the mean loss, as measured in a training pass; None: not measured.
        parameters: Of the segment and the synthesizers at its end, the smallest first; no segment below uses them.
    """

    def __init__(self) -> None:
        self.divisor: int | None = None
        self.factor: float | None = None
        self.parameters: tuple[nn.Parameter, ...] = ()
        self._task = -1  # autograd's number of the last backward pass of the loss that brought a target
        self._arrived = False  # a target has come since the last local backward pass

    def watch(self, parameters: Iterable[nn.Parameter]) -> None:
        """Set the parameters whose gradients show the accumulation."""
        self.parameters = tuple(sorted(parameters, key=lambda p: p.numel()))

    def pre_local_backward(self) -> None:
        """Before a local backward pass: raise an error if the gradients of a finished pass are still there."""
        arrived, self._arrived = self._arrived, False
        if arrived:
            self._check()

    def pre_target(self) -> None:
        """When a target arrives at an ordinary autograd graph: raise the same error, before gradients are added."""
        task = torch._C._current_graph_task_id()
        if self._task not in (-1, task):
            self._check()
        self._task = task

    def post_target(self) -> None:
        """When a target arrives whose segment has already run its local backward pass."""
        self._arrived = True

    def measured(self, factor: float) -> None:
        """Keep the factor of the mean loss; raise an error if the loop does not divide the loss, but should."""
        self.factor = factor
        if (self.divisor or 1) > 1 and self._whole:
            raise DniFxError(
                f"accumulate={self.divisor} is for a loop that divides each loss by {self.divisor}, but this loss is "
                f"the undivided mean over the batch: call (loss / {self.divisor}).backward()"
            )

    @property
    def _whole(self) -> bool:
        """Whether the loss is known to be the mean over the batch itself."""
        return self.factor is not None and abs(self.factor - 1) < _CLOSE

    def _check(self) -> None:
        if self.divisor is not None or self._whole:
            return
        kept = [p.grad for p in self.parameters if p.grad is not None][:_READ]
        if any(bool(gradient.any()) for gradient in kept):
            if self.factor is None:
                raise DniFxError(f"{_KEPT}: {_UNKNOWN}")
            divisor = max(1, round(1 / self.factor))
            raise DniFxError(
                f"{_KEPT}, and this loss is {self.factor:.3g} times the mean over the batch, which predictions do not "
                f"know: give accumulate={divisor} to dni_fx.transform (for a net that is made: "
                f"net.dni.scale_with(accumulate={divisor}))"
            )
