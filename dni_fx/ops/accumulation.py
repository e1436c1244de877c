"""Whether the training loop accumulates the gradients of several batches."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dni_fx.errors import DniFxError

__all__ = ["Accumulation"]

_READ = 4  # gradients whose values are read: zero_grad(set_to_none=False) leaves zeros

_ADVICE = (
    "if the loop divides the loss by k, give accumulate=k to dni_fx.transform (or call "
    "net.dni.scale_with(accumulate=k)), since a prediction is of the undivided loss; if the loop adds whole losses, give "
    "accumulate=1; if it does not accumulate, call zero_grad() before each forward pass"
)


class Accumulation:
    """Finds out, for one segment, whether the gradients of an earlier batch are kept for the next.

    Attributes:
        divisor: The number by which the loop divides the loss; None: not known.
        advice: What to do if gradients are kept and the divisor is not known.
        parameters: Some parameters of the segment, the smallest first, which no segment below uses.
    """

    def __init__(self) -> None:
        self.divisor: int | None = None
        self.advice = _ADVICE
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

    def pre_backward_of(self, outputs: Iterable[Tensor]) -> None:
        """Let the backward pass of the loss raise the same error when it reaches the outputs of a net cut in time."""
        attached = [output for output in outputs if output.requires_grad]
        if attached and self.divisor is None:
            torch.autograd.graph.register_multi_grad_hook(attached, lambda _: self.pre_target(), mode="any")

    def post_target(self) -> None:
        """When a target arrives whose segment has already run its local backward pass."""
        self._arrived = True

    def _check(self) -> None:
        if self.divisor is not None:
            return
        kept = [p.grad for p in self.parameters if p.grad is not None][:_READ]
        if any(bool(gradient.any()) for gradient in kept):
            raise DniFxError(f"the gradients of an earlier batch are still there, and the next ones are added: {self.advice}")
