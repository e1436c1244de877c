"""Whether the training loop accumulates the gradients of several batches."""

from collections.abc import Iterable

import torch
from torch import nn

from dni_fx.errors import DniFxError

__all__ = ["Accumulation"]

_CLOSE = 0.05  # a measured factor this close to 1 is 1
_READ = 4  # gradients whose values are read: zero_grad(set_to_none=False) leaves zeros

_KEPT = "the gradients of an earlier batch were still there, and the next ones were added"
_UNKNOWN = (
    "predictions are of the undivided loss, so give dni_fx.transform the number k by which the loop divides each loss, "
    "accumulate=k (for a net that is made: net.dni.scale_with(accumulate=k)); accumulate=1 if it adds whole losses. If "
    "the loop does not accumulate, call zero_grad() before each forward pass"
)


class Accumulation:
    """Finds out, at the last cut, whether the gradients of an earlier batch are kept for the next.

    Attributes:
        divisor: The number by which the loop divides the loss; None: not known.
        factor: The measured factor of the loss, over the factor that predictions follow; None: not measured.
        parameters: Of the segment and the synthesizers at its end, the smallest first; no segment below uses them.
    """

    def __init__(self) -> None:
        self.divisor: int | None = None
        self.factor: float | None = None
        self.parameters: tuple[nn.Parameter, ...] = ()
        self._task = -1  # autograd's number of the last backward pass of the loss that brought a target
        self._arrived = False  # a target has come since the last local backward pass
        self._kept = False  # the last local backward pass added to gradients of a pass whose target had come

    def watch(self, parameters: Iterable[nn.Parameter]) -> None:
        """Set the parameters whose gradients show the accumulation."""
        self.parameters = tuple(sorted(parameters, key=lambda p: p.numel()))

    def pre_local_backward(self) -> None:
        """Before a local backward pass: see whether the gradients of a finished pass are still there."""
        self._kept = (self._arrived or self._kept) and self._are_gradients_kept()
        self._arrived = False

    def pre_target(self) -> None:
        """When a target arrives in an ordinary autograd graph, before gradients are added: raise the same error."""
        task = torch._C._current_graph_task_id()
        if self._task not in (-1, task) and self._are_gradients_kept():
            raise self._error()
        self._task = task

    def post_target(self) -> None:
        """When a target arrives whose segment has run its local backward pass: raise an error if that pass added up.

        Not earlier: a forward pass without a backward pass does no harm before the next zero_grad().
        """
        self._arrived = True
        if self._kept:
            raise self._error()

    def measured(self, factor: float) -> None:
        """Keep the measured factor; raise an error if the loop does not divide the loss, but should."""
        self.factor = factor
        if self.divisor is not None and self.divisor > 1 and abs(factor / self.divisor - 1) < _CLOSE:
            raise DniFxError(
                f"accumulate={self.divisor} is for a loop that divides each loss by {self.divisor}, but this loss is "
                f"the undivided mean over the batch: call (loss / {self.divisor}).backward()"
            )

    def _are_gradients_kept(self) -> bool:
        if self.divisor is not None or (self.factor is not None and abs(self.factor - 1) < _CLOSE):
            return False
        kept = [p.grad for p in self.parameters if p.grad is not None][:_READ]
        return any(bool(gradient.any()) for gradient in kept)

    def _error(self) -> DniFxError:
        if self.factor is None:
            return DniFxError(f"{_KEPT}: {_UNKNOWN}")
        divisor = max(1, round(1 / self.factor))
        return DniFxError(
            f"{_KEPT}, and this loss is {self.factor:.3g} times the mean over the batch, while predictions are of the "
            f"mean: give dni_fx.transform accumulate={divisor} (for a net that is made: "
            f"net.dni.scale_with(accumulate={divisor}))"
        )
