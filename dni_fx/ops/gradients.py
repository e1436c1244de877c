"""Gradients: their batch size, whether they are finite, and their norms."""

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["batch_size", "cast", "clipped", "finite", "is_finite"]


def batch_size(activation: Tensor) -> int:
    """Rows of a batch-first activation; an activation of one axis or none counts as one sample."""
    return activation.shape[0] if activation.dim() > 1 else 1


def can_look(tensor: Tensor) -> bool:
    """Whether its values are there to be looked at, and nobody has to wait for them."""
    traced = torch.compiler.is_compiling() or type(tensor) is not Tensor
    return tensor.device.type == "cpu" and not traced


def is_finite(gradient: Tensor) -> Any:
    """Whether all of it is, in one pass: a bool where one can look, else a tensor on its device."""
    wide = torch.float32 if gradient.dtype.itemsize < 4 else None
    total = gradient.sum(dtype=wide)
    return math.isfinite(total.item()) if can_look(gradient) else total.isfinite()


def finite(gradient: Tensor) -> tuple[Tensor | None, Any]:
    """The gradient, and whether all of it is finite; if not, None in its place, or zeros where a look would wait.

    None is the better one: zeros times an activation that is not finite are not finite again.
    """
    ok = is_finite(gradient)
    if isinstance(ok, bool):
        return (gradient if ok else None), ok
    return torch.where(ok, gradient, 0.0), ok


def clipped(target: Tensor, clip: float, batch: int) -> Tensor:
    """The target with the norm of each sample's own gradient (target times batch) held down to `clip`; 0: no limit."""
    if not clip:
        return target
    norms = torch.linalg.vector_norm(target.reshape(batch, -1), dim=1, keepdim=True) * batch
    held: Tensor = target.reshape(batch, -1) * (clip / norms.clamp(min=clip))
    return held.reshape(target.shape)


def cast(gradient: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if gradient is None else gradient.to(dtype)
