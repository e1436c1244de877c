"""Labels and other contexts of synthesizers, brought to the shape of an activation."""

import torch
from torch import Tensor, nn

from dni_fx.errors import ContextError
from dni_fx.ops import is_readable
from dni_fx.synthesizers.base import adaptive_average

__all__ = ["IGNORED", "as_rows", "check_labels", "expand_context"]

IGNORED = -100  # the label that torch's losses ignore


def check_labels(context: Tensor, classes: int | None, size: int) -> Tensor:
    """Return the context for a loss, unchanged but for integers, which become int64.

    Args:
        context: With `classes`: integers; or rows of `size` floats.

    Raises:
        ContextError: If the context does not fit.
    """
    context = as_rows(context, size)
    if context.is_floating_point():
        if context.dim() == 0 or context.shape[-1] != size:
            raise ContextError(f"dni_context has shape {list(context.shape)}; expected {size} values a row")
    elif classes is None:
        raise ContextError(f"dni_context holds integers; expected {size} floats a row")
    else:
        context = context.long()
        _check_range(context, classes)
    return context


def expand_context(context: Tensor, activation: Tensor, axis: int, *, classes: int | None, size: int) -> Tensor:
    """Bring a context to the activation's shape, but for the feature axis.

    Args:
        context: With `classes`: integer labels (N,), (N, T) or (N, H, W), where -100 is no label, or one-hot or soft
            labels with a last axis of `classes`. Else a float vector (N, size), or one for each position, features
            last; with size 1 also a number for each sample or position, or one number, such as the loss of the last
            step. A map of labels is averaged to the activation's resolution.
        activation: (N, ...); the context is repeated over the axes other than `axis`.
        axis: The activation's feature axis.
        classes: Number of labels.
        size: Entries of the result's feature axis.

    Raises:
        ContextError: If the context does not fit.
    """
    context = as_rows(context, size)
    if classes is not None and not context.is_floating_point():
        context = _one_hot(context, classes)
    axis = axis % activation.dim()
    positions = [n for i, n in enumerate(activation.shape) if i != axis]
    if context.dim() == 0 and size == 1:
        return context.to(activation.dtype).expand(*positions, 1).movedim(-1, axis)
    if context.dim() == 0 or context.shape[-1] != size:
        wanted = f"integer labels, or {size} values a row" if classes is not None else f"{size} values a row"
        raise ContextError(f"dni_context has shape {list(context.shape)}; expected {wanted}")
    if axis == 1 and context.dim() == activation.dim() > 2 and len(context) == len(activation):
        context = _at_resolution(context, positions[1:])
    lead = list(context.shape[:-1])
    if lead != positions[: len(lead)] or (positions and not lead):
        raise ContextError(
            f"dni_context is for {lead} positions, but the activation at the cut has {positions}: give integer "
            "labels (N,), or a row of values a sample (N, values), in the order of the batch; one-hot labels are floats"
        )
    context = context.reshape(*lead, *[1] * (len(positions) - len(lead)), size).expand(*positions, size)
    return context.movedim(-1, axis)


def as_rows(context: Tensor, size: int) -> Tensor:
    """Numbers (N,), or one for each position, as rows of one number each, for a context of size 1."""
    has_rows = context.dim() > 1 and context.shape[-1] == 1
    if size == 1 and context.is_floating_point() and context.dim() and not has_rows:
        return context.unsqueeze(-1)
    return context


def _one_hot(labels: Tensor, classes: int) -> Tensor:
    """(..., classes) of floats; all zero where a label is ignored."""
    labels = labels.long()
    _check_range(labels, classes)
    known = labels != IGNORED
    hot = nn.functional.one_hot(torch.where(known, labels, 0), classes)
    return (hot * known.unsqueeze(-1)).float()


def _at_resolution(context: Tensor, positions: list[int]) -> Tensor:
    """A map (N, ..., size) averaged to other spatial sizes."""
    if list(context.shape[1:-1]) == positions or not context.is_floating_point():
        return context
    return adaptive_average(context.movedim(-1, 1), positions).movedim(1, -1)


def _check_range(labels: Tensor, classes: int) -> None:
    """Check labels on the CPU only: on a GPU reading them would wait for the device, and a compiler has no values."""
    if is_readable(labels) and labels.numel():
        known = labels[labels != IGNORED]
        if known.numel() and (int(known.min()) < 0 or int(known.max()) >= classes):
            wrong = int(known.min()) if int(known.min()) < 0 else int(known.max())
            raise ContextError(
                f"dni_context holds the label {wrong}; expected labels from 0 to {classes - 1}, or {IGNORED}, which is "
                "ignored"
            )
