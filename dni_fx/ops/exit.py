"""The gradients that an exit has computed, as a node of autograd's graph."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dni_fx.errors import BackwardOrderError, DniFxError
from dni_fx.ops.segment import TWICE

__all__ = ["accumulate", "exit_gradients", "gradients"]


def gradients(
    value: Tensor, inputs: Sequence[Tensor], gradient: Tensor | None = None, *, retain_graph: bool = False
) -> tuple[Tensor | None, ...]:
    """The gradients of a value for some tensors, as `torch.autograd.grad` returns them.

    Raises:
        DniFxError: If the model calls a checkpoint that has no gradients for some tensors alone.
    """
    try:
        return torch.autograd.grad(value, inputs, gradient, retain_graph=retain_graph, allow_unused=True)
    except RuntimeError as error:
        if "use_reentrant=True" not in str(error):
            raise
        raise DniFxError(
            "an exit runs layers that call torch.utils.checkpoint with use_reentrant=True, which has no gradients for "
            "some tensors alone: pass use_reentrant=False there, or give inside='checkpoint' in its place"
        ) from error


def accumulate(parameters: Sequence[Tensor], found: Sequence[Tensor | None]) -> None:
    """Add gradients to those of the parameters, as a backward pass does."""
    for parameter, gradient in zip(parameters, found, strict=True):
        if gradient is not None:
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)


class _ExitGradients(torch.autograd.Function):
    """Return the gradients of the crossing tensors; in backward, give the parameters of the exit their gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        factor: Callable[[], float | Tensor | None],
        found: Sequence[Tensor | None],
        gradients: Sequence[Tensor],
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.factor, ctx.found = factor, found
        ctx.set_materialize_grads(False)
        return tuple(gradients)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *errors: Tensor | None) -> tuple[Any, ...]:
        if ctx.found is None:
            raise BackwardOrderError(TWICE)
        found, ctx.found = ctx.found, None
        if all(error is None for error in errors):  # the gradients were not finite
            return (None,) * (3 + len(found) + 1)
        factor = ctx.factor()
        if factor is not None:
            found = [None if one is None else one * factor for one in found]
        return None, None, None, *found, None


def exit_gradients(
    gradients: Sequence[Tensor],
    parameters: Sequence[Tensor],
    found: Sequence[Tensor | None],
    factor: Callable[[], float | Tensor | None],
) -> tuple[Tensor, ...]:
    """Return `gradients`; when their targets arrive, `parameters` get the gradients `found`, times the factor.

    Args:
        gradients: Of the exit's mean loss, one for each crossing tensor.
        factor: Returns the factor of the loss (see `dni_fx.synthesizers.LossScale`); None: 1.
    """
    # An exit that trains no parameter gets a target, too: the metrics compare with it.
    anchor = torch.zeros((), requires_grad=True)
    apply: Any = _ExitGradients.apply
    result: tuple[Tensor, ...] = apply(factor, found, gradients, *parameters, anchor)
    return result
