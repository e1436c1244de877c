"""Small heads, made from shapes, for exits that no later layers fit: from a crossing tensor to an output."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from dni_fx.plans import CrossingTensor
from dni_fx.synthesizers.base import adaptive_average

__all__ = ["head_flops", "make_head"]

_GRID = 4  # positions along each axis to which a map is averaged
_CHANNELS = 16  # of the head from map to map


class _ToMap(nn.Module):
    """A convolution over the neighbours, then one of each position, at the resolution of the output."""

    def __init__(self, tensor: CrossingTensor, output: CrossingTensor) -> None:
        super().__init__()
        axes = len(tensor.shape) - 2
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
        norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[axes - 1]
        self.net = nn.Sequential(
            conv(tensor.shape[1], _CHANNELS, 3, padding=1, bias=False),
            norm(_CHANNELS),
            nn.ReLU(),
            conv(_CHANNELS, output.shape[1], 1),
        )
        self.mode = ("linear", "bilinear", "trilinear")[axes - 1]
        self.scale = [o / i for i, o in zip(tensor.shape[2:], output.shape[2:], strict=True)]

    def forward(self, h: Tensor) -> Tensor:
        size = [round(n * scale) for n, scale in zip(h.shape[2:], self.scale, strict=True)]
        out: Tensor = self.net(h)
        return out if list(out.shape[2:]) == size else nn.functional.interpolate(out, size=size, mode=self.mode)


class _ToVector(nn.Module):
    """A linear layer on a vector, on a map averaged over a grid, or on the mean of a sequence."""

    def __init__(self, tensor: CrossingTensor, output: CrossingTensor) -> None:
        super().__init__()
        self.is_map, self.is_sequence = _is_map(tensor), len(tensor.shape) > 2 and not _is_map(tensor)
        positions = _GRID ** (len(tensor.shape) - 2) if self.is_map else 1
        features = tensor.shape[1 if self.is_map else -1]
        self.norm = nn.LayerNorm(features) if self.is_sequence else nn.Identity()
        self.linear = nn.Linear(features * positions, math.prod(output.shape[1:]))
        self.shape = output.shape[1:]

    def forward(self, h: Tensor) -> Tensor:
        if self.is_map:
            h = adaptive_average(h, [_GRID] * (h.dim() - 2)).flatten(1)
        elif self.is_sequence:
            h = self.norm(h.flatten(1, -2).mean(1))
        out: Tensor = self.linear(h)
        return out.reshape(-1, *self.shape)


class _AtPositions(nn.Module):
    """A linear layer at every position of a sequence."""

    def __init__(self, tensor: CrossingTensor, output: CrossingTensor) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.LayerNorm(tensor.shape[-1]), nn.Linear(tensor.shape[-1], output.shape[-1]))
        self.is_flat = len(output.shape) == 2

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.net(h)
        return out.flatten(0, -2) if self.is_flat else out


def make_head(tensor: CrossingTensor, output: CrossingTensor) -> nn.Module | None:
    """A head from a crossing tensor to an output of the model; None: the shapes fit no head."""
    kind = _kind(tensor, output)
    return None if kind is None else kind(tensor, output)


def head_flops(tensor: CrossingTensor, outputs: Sequence[CrossingTensor]) -> float:
    """Operations of the forward passes of heads; infinity: the shapes fit no head."""
    total = 0.0
    for output in outputs:
        kind = _kind(tensor, output)
        if kind is None:
            return math.inf
        entries, features = math.prod(tensor.shape), tensor.shape[1 if _is_map(tensor) else -1]
        if kind is _ToMap:
            total += 2 * entries // features * (features * 3 ** (len(tensor.shape) - 2) + output.shape[1]) * _CHANNELS
        elif kind is _AtPositions:
            total += 2 * entries * output.shape[-1]
        else:
            positions = _GRID ** (len(tensor.shape) - 2) if _is_map(tensor) else 1
            total += 2 * features * positions * math.prod(output.shape)
    return total


def _kind(tensor: CrossingTensor, output: CrossingTensor) -> type[_ToMap | _ToVector | _AtPositions] | None:
    if tensor.batch != 0 or output.batch != 0 or len(output.shape) < 2 or tensor.rows != 1:
        return None
    if _is_map(tensor) and _is_map(output):
        return _ToMap if len(tensor.shape) == len(output.shape) else None
    if output.rows == 1 and (len(output.shape) == 2 or len(tensor.shape) == 2):
        return _ToVector
    same = tensor.shape[:-1] == output.shape[:-1]
    flat = len(output.shape) == 2 and math.prod(tensor.shape[:-1]) == output.shape[0]
    return _AtPositions if not _is_map(tensor) and len(tensor.shape) > 2 and (same or flat) else None


def _is_map(tensor: CrossingTensor) -> bool:
    return tensor.axis == 1 and len(tensor.shape) in (3, 4, 5)
