"""Compare two sets of tensors: are they equal up to rounding?"""

import math

import torch
from torch import Tensor

from dni_fx.proof.step import StepResult, named

__all__ = ["close", "same_outputs"]

# As a share of the largest entry. Models that compute in float32 inside differ by more than float64 resolves.
TOLERANCE = {
    torch.float64: 1e-6,
    torch.float32: 2e-3,
    torch.complex64: 2e-3,
    torch.float16: 5e-2,
    torch.bfloat16: 5e-2,
}


def close(got: dict[str, Tensor], expected: dict[str, Tensor], *, narrow: bool = False) -> tuple[bool, str]:
    """Compare two sets of tensors by name.

    Args:
        narrow: Some value was computed in 16 bits, whatever the dtype of the tensors.

    Returns:
        Whether the sets agree; and the largest difference, as a share of the tensor's largest entry, or the first
        tensor that cannot be compared.
    """
    got, expected = _numbers(got), _numbers(expected)
    common = got.keys() & expected.keys()
    unlike = {name for name in common if not _identical(got[name], expected[name])}
    for name in common if unlike else ():
        got[name], expected[name] = _without_equal_nonfinite(got[name], expected[name])
    missing = sorted(n for n in got.keys() ^ expected.keys() if (got | expected)[n].any())
    if missing:
        return False, f"{missing[0]} is in one of them only"
    largest = max((float(t.abs().max()) for t in expected.values() if unlike and t.numel()), default=0.0)
    worst, where, dtypes = 0.0, "", {torch.bfloat16 if narrow else torch.float64}
    for name in (name for name in expected if name in got):
        one, other = got[name], expected[name]
        if one.shape != other.shape:
            return False, f"{name} has shape {list(one.shape)}, not {list(other.shape)}"
        dtypes.add(other.dtype)
        if name not in unlike or not one.numel() or torch.equal(one, other):
            continue
        error = float((one - other).abs().max() / (other.abs().max() + 1e-3 * largest))
        if not error < math.inf:
            return False, f"{name} is not finite"
        if error > worst:
            worst, where = error, f" at {name}"
    tolerance = max(TOLERANCE.get(dtype, 0.0) for dtype in dtypes)
    return worst <= tolerance, f"off by {worst:.1e}{where}" if worst else "exact"


def same_outputs(net: StepResult, model: StepResult) -> tuple[bool, str]:
    """Compare the outputs of two steps, and the buffers that the net has, too."""
    buffers = {name: buffer for name, buffer in model.buffers.items() if name in net.buffers}
    return close(
        named(net.outputs) | {name: net.buffers[name] for name in buffers},
        named(model.outputs) | buffers,
        narrow=model.narrow,
    )


def _identical(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)


def _without_equal_nonfinite(got: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    """Both tensors with zeros where both are NaN, or the same infinity: infinities cannot be subtracted."""
    if got.shape != expected.shape or bool(expected.isfinite().all()):
        return got, expected
    same = (got == expected) & ~expected.isfinite() | got.isnan() & expected.isnan()
    return got.masked_fill(same, 0.0), expected.masked_fill(same, 0.0)


def _numbers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn integers and truth values into float64, and sparse tensors into dense ones, which can be compared."""
    tensors = {name: t.to_dense() if t.layout is not torch.strided else t for name, t in tensors.items()}
    inexact = {name: t.is_floating_point() or t.is_complex() for name, t in tensors.items()}
    return {name: t if inexact[name] else t.double() for name, t in tensors.items()}
