"""Whether the training loop accumulates the gradients of several batches."""

import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from dni_fx.errors import DniFxError
from dni_fx.ops.optimizers import parameters_of

__all__ = ["Accumulation", "LossMeasure"]

_CLOSE = 0.05  # a measured factor this close to 1 is 1
_TOLERANCE = 1e-2  # of the gradient's norm, wide enough for bfloat16
_READ = 4  # gradients whose values are read: zero_grad(set_to_none=False) leaves zeros

_KEPT = "the gradients of an earlier batch were still there, and the next ones were added"
_UNKNOWN = (
    "predictions are of the undivided loss, so give dni_fx.transform the number k by which the loop divides each loss, "
    "accumulate=k (for a net that is made: net.dni.scale_with(accumulate=k)); accumulate=1 if it adds whole losses. If "
    "the loop does not accumulate, call zero_grad() before each forward pass"
)


class LossMeasure(NamedTuple):
    """The number by which a loss is the mean loss, if it is.

    Attributes:
        factor: The number.
        rest: The share of the gradient's norm that the mean loss does not explain.
    """

    factor: Tensor
    rest: Tensor


class Accumulation:
    """Finds out, at the last cut, whether the gradients of an earlier batch are kept for the next.

    Attributes:
        divisor: The number by which the loop divides the loss; None: not known.
        measures: Of the factor of the loss, on the device of the loss, until the factor is read.
        parameters: Of the segment, the smallest first; no other segment uses them.
    """

    def __init__(self) -> None:
        self.divisor: int | None = None
        self.measures: list[LossMeasure] = []
        self._factor: float | None = None
        self.parameters: tuple[nn.Parameter, ...] = ()
        self._task = -1  # autograd's number of the last backward pass of the loss that brought a target
        self._arrived = False  # a target has come since the last local backward pass
        self._kept = False  # the last local backward pass added to gradients of a pass whose target had come

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy, also one that an older version pickled."""
        self.__dict__ = Accumulation().__dict__ | state

    def watch(self, parameters: Iterable[nn.Parameter]) -> None:
        """Set the parameters whose gradients show the accumulation."""
        self.parameters = tuple(sorted(parameters, key=lambda p: p.numel()))

    def pre_local_backward(self) -> None:
        """Before a local backward pass: see whether the gradients of a finished pass are still there."""
        self._kept = (self._arrived or self._kept) and self._are_gradients_kept()
        self._arrived = False

    def post_target(self) -> None:
        """When a target arrives whose segment has run its local backward pass.

        Not earlier: a forward pass without a backward pass does no harm before the next zero_grad().
        """
        self._arrived = True
        self._report(self._kept)

    def pre_target(self) -> None:
        """When a target arrives in an ordinary autograd graph, before gradients are added."""
        task = torch._C._current_graph_task_id()
        if task != self._task:
            self._report(self._task != -1 and self._are_gradients_kept())
        self._task = task

    def pre_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Before an optimizer steps: raise an error if it uses gradients of several batches."""
        if self.divisor is None and not set(self.parameters).isdisjoint(parameters_of([optimizer])):
            raise self._error()

    def _report(self, added: bool) -> None:
        """Raise an error if gradients were added, and the factor is known to be another than 1; else at the next step.

        Only a step does harm, and without a known factor the loop may be right.
        """
        if added and self.factor is not None:
            raise self._error()
        (_added.add if added else _added.discard)(self)

    @property
    def factor(self) -> float | None:
        """The factor of the loss, over the factor that predictions follow; None: not measured. Waits for the device."""
        while self.measures:
            factor, rest = (float(value) for value in self.measures.pop(0))
            if rest < _TOLERANCE and factor > 0:
                self._factor = factor
                self.measures.clear()
        return self._factor

    def check_divided(self) -> None:
        """Raise an error if the loop does not divide the loss, but should; on a GPU, this may wait for the device."""
        if self.divisor is None or self.divisor <= 1:
            return
        factor = self.factor
        if factor is not None and abs(factor / self.divisor - 1) < _CLOSE:
            raise DniFxError(
                f"accumulate={self.divisor} is for a loop that divides each loss by {self.divisor}, but this loss is "
                f"the undivided mean over the batch: call (loss / {self.divisor}).backward()"
            )

    def _are_gradients_kept(self) -> bool:
        kept = [p.grad for p in self.parameters if p.grad is not None][:_READ]
        if not kept:
            return False
        self.check_divided()
        return self._may_divide() and any(bool(gradient.any()) for gradient in kept)

    def _may_divide(self) -> bool:
        """Whether the loop may divide the loss by another number than `divisor`, by all that is known."""
        if self.factor is None or self.divisor not in (None, 1):
            return self.divisor is None
        measured = round(1 / self.factor)
        divides = measured > 1 and abs(self.factor * measured - 1) < _CLOSE
        return divides or (self.divisor is None and abs(self.factor - 1) >= _CLOSE)

    def _error(self) -> DniFxError:
        if self.factor is None:
            return DniFxError(f"{_KEPT}: {_UNKNOWN}")
        divisor = max(1, round(1 / self.factor))
        given = "" if self.divisor is None else f" in place of accumulate={self.divisor}"
        return DniFxError(
            f"{_KEPT}, and this loss is {self.factor:.3g} times the mean over the batch, while predictions are of the "
            f"mean: give dni_fx.transform accumulate={divisor}{given} (for a net that is made: "
            f"net.dni.scale_with(accumulate={divisor}))"
        )


_added: "weakref.WeakSet[Accumulation]" = weakref.WeakSet()  # with gradients of several batches


def _pre_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for one in [] if torch.compiler.is_compiling() else list(_added):
        one.pre_step(optimizer)


register_optimizer_step_pre_hook(_pre_step)
