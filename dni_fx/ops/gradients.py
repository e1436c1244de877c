"""Gradients: their batch size, whether they are finite, and their norms."""

import math

import torch
from torch import Tensor

__all__ = ["batch_size", "cast", "clipped", "is_finite", "without_nonfinite"]


def batch_size(activation: Tensor, axis: int | None = 0, rows: int = 1) -> int:
    """The number of samples in an activation, at least 1; an activation of one axis or none counts as one sample.

    Args:
        axis: The batch axis; None: the activation is one sample.
        rows: The entries of the batch axis for each sample; 0: each counts as a sample.
    """
    if axis is None or activation.dim() < 2:
        return 1
    return max(1, activation.shape[axis] // (rows or 1))


def is_readable(tensor: Tensor) -> bool:
    """Whether its values can be read without waiting for a device."""
    traced = torch.compiler.is_compiling() or type(tensor) is not Tensor
    return tensor.device.type == "cpu" and not traced


def is_finite(gradient: Tensor) -> bool | Tensor:
    """Whether all values are finite, in one pass: a bool where they are readable, else a tensor on their device."""
    wide = torch.float32 if gradient.dtype.itemsize < 4 else None
    total = gradient.sum(dtype=wide)
    return math.isfinite(total.item()) if is_readable(gradient) else total.isfinite()


def without_nonfinite(gradient: Tensor) -> tuple[Tensor | None, bool | Tensor]:
    """The gradient, and whether all its values are finite.

    If not, the gradient is replaced: by None where values are readable, else its values that are not finite by zeros.
    None is better: zeros times an activation that is not finite are not finite again.
    """
    ok = is_finite(gradient)
    if isinstance(ok, bool):
        return (gradient if ok else None), ok
    return torch.where(ok, gradient, 0.0), ok


def clipped(target: Tensor, clip: float, batch: int, axis: int | None = 0) -> Tensor:
    """The target, with the norm of each sample's own gradient (target times batch) at most `clip`; 0: no limit.

    Args:
        batch: The number of samples. If each has several entries of the batch axis, the limit holds for each entry.
        axis: The batch axis; None: the target is one sample.
    """
    if not clip:
        return target
    others = [i for i in range(target.dim()) if axis is None or target.dim() < 2 or i != axis]
    norms = torch.linalg.vector_norm(target, dim=others, keepdim=True) * batch
    limited: Tensor = target * (clip / norms.clamp(min=clip))
    return limited


def cast(gradient: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if gradient is None else gradient.to(dtype)
