"""What synthesizers are conditioned on, brought to the shape of an activation."""

import torch
from torch import Tensor, nn

from dni_fx.errors import ContextError

__all__ = ["expand_context"]


def expand_context(context: Tensor, activation: Tensor, axis: int, *, classes: int | None, size: int) -> Tensor:
    """Bring a context to the activation's shape, but for the feature axis.

    Args:
        context: With `classes`: integer labels (N,), (N, T) or (N, H, W), or one-hot or soft labels with a last
            axis of `classes`. Else a float vector (N, size), or one for each position, features last.
        activation: (N, ...); its axes other than `axis` are what the context is repeated over.
        axis: The activation's feature axis.
        classes: Number of labels.
        size: Entries of the result's feature axis.

    Raises:
        ContextError: If the context does not fit.
    """
    if classes is not None and not context.is_floating_point():
        _check_labels(context, classes)
        try:
            context = nn.functional.one_hot(context.long(), classes)
        except RuntimeError as error:
            raise ContextError(f"dni_context: labels must lie between 0 and {classes - 1} ({error})") from None
    if context.dim() == 0 or context.shape[-1] != size:
        wanted = f"integer labels, or {size} values a row" if classes is not None else f"{size} values a row"
        raise ContextError(f"dni_context has shape {list(context.shape)}; expected {wanted}")
    axis = axis % activation.dim()
    wanted_shape = [n for i, n in enumerate(activation.shape) if i != axis]
    lead = list(context.shape[:-1])
    if lead != wanted_shape[: len(lead)] or (wanted_shape and not lead):
        raise ContextError(
            f"dni_context is for {lead} positions, but the activation at the cut has {wanted_shape}: give integer "
            "labels (N,), or a row of values a sample (N, values), in the order of the batch; one-hot labels are floats"
        )
    context = context.reshape(*lead, *[1] * (len(wanted_shape) - len(lead)), size).expand(*wanted_shape, size)
    return context.movedim(-1, axis)


def _check_labels(labels: Tensor, classes: int) -> None:
    """Only where a look is free: on a GPU it would wait for the device, and a compiler cannot look."""
    if labels.device.type == "cpu" and labels.numel() and not torch.compiler.is_compiling():
        least, most = int(labels.min()), int(labels.max())
        if least < 0 or most >= classes:
            raise ContextError(
                f"dni_context holds the label {least if least < 0 else most}; expected labels from 0 to {classes - 1}: "
                "give positions that the loss ignores any of these"
            )
