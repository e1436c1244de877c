"""Small heads, made from shapes, for exits that no later layers fit: from the crossing tensors to an output."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from dni_fx.plans import CrossingTensor
from dni_fx.synthesizers.base import adaptive_average

__all__ = ["head_flops", "make_head", "of_target_size"]

_GRID = 2  # positions along each axis to which a map is averaged
_MODES = ("linear", "bilinear", "trilinear")  # of interpolation, by the number of axes
_CHANNELS = 16  # of the head from map to map


class _ToMap(nn.Module):
    """A convolution of the last map over neighbours, one of each position of the others, and one of their sum.

    The sum has the resolution of the finest map (skip connections of a head: Long et al. 2015, section 4.2).
    """

    def __init__(self, tensors: Sequence[CrossingTensor], output: CrossingTensor) -> None:
        super().__init__()
        axes = len(output.shape) - 2
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
        *others, last = _maps(tensors)
        finest = _finest(tensors)
        self.maps = [tensors.index(one) for one in _maps(tensors)]
        self.finest = tensors.index(finest)
        self.near = conv(last.shape[1], _CHANNELS, 3, padding=1, bias=False)
        self.others = nn.ModuleList(conv(other.shape[1], _CHANNELS, 1, bias=False) for other in others)
        self.top = nn.Sequential(_norm(output)(_CHANNELS), nn.ReLU(), conv(_CHANNELS, output.shape[1], 1))
        self.mode = _MODES[axes - 1]
        self.scale = [o / i for i, o in zip(finest.shape[2:], output.shape[2:], strict=True)]

    def forward(self, *tensors: Tensor) -> Tensor:
        size = list(tensors[self.finest].shape[2:])
        *others, last = [tensors[index] for index in self.maps]
        total = self._resized(self.near(last), size)
        for layer, other in zip(self.others, others, strict=True):
            total = total + self._resized(layer(other), size)
        out: Tensor = self.top(total)
        return self._resized(out, [max(1, round(n * scale)) for n, scale in zip(size, self.scale, strict=True)])

    def _resized(self, values: Tensor, size: list[int]) -> Tensor:
        same = list(values.shape[2:]) == size
        return values if same else nn.functional.interpolate(values, size=size, mode=self.mode)


class _ToVector(nn.Module):
    """A linear layer: on a vector, on the average of a normalised map over a grid, or on the mean of a sequence."""

    def __init__(self, tensors: Sequence[CrossingTensor], output: CrossingTensor) -> None:
        super().__init__()
        tensor = tensors[-1]
        self.is_map, self.is_sequence = _is_map(tensor), len(tensor.shape) > 2 and not _is_map(tensor)
        positions = _GRID ** (len(tensor.shape) - 2) if self.is_map else 1
        features = tensor.shape[1 if self.is_map else -1]
        self.norm: nn.Module = nn.LayerNorm(features) if self.is_sequence else nn.Identity()
        if self.is_map:
            self.norm = nn.Sequential(_norm(tensor)(features), nn.ReLU())
        self.linear = nn.Linear(features * positions, math.prod(output.shape[1:]))
        self.shape = output.shape[1:]

    def forward(self, *tensors: Tensor) -> Tensor:
        h = tensors[-1]
        if self.is_map:
            h = self.norm(h) if h.numel() > h.shape[1] else h  # batch norm needs more than one value of a channel
            h = adaptive_average(h, [_GRID] * (h.dim() - 2)).flatten(1)
        elif self.is_sequence:
            h = self.norm(h.flatten(1, -2).mean(1))
        out: Tensor = self.linear(h)
        return out.reshape(-1, *self.shape)


class _AtPositions(nn.Module):
    """A linear layer at every position of a sequence."""

    def __init__(self, tensors: Sequence[CrossingTensor], output: CrossingTensor) -> None:
        super().__init__()
        features = tensors[-1].shape[-1]
        self.net = nn.Sequential(nn.LayerNorm(features), nn.Linear(features, output.shape[-1]))
        self.is_flat = len(output.shape) == 2

    def forward(self, *tensors: Tensor) -> Tensor:
        out: Tensor = self.net(tensors[-1])
        return out.flatten(0, -2) if self.is_flat else out


def make_head(tensors: Sequence[CrossingTensor], output: CrossingTensor) -> nn.Module | None:
    """A head from the crossing tensors to an output of the model; None: the shapes fit no head.

    A head from maps to a map takes all that are maps; any other head takes the last crossing tensor.
    """
    kind = _kind(tensors[-1], output)
    return None if kind is None else kind(tensors, output)


def of_target_size(output: Tensor, target: object) -> Tensor:
    """The output of a head at the resolution of its target: a map of labels (N, ...), or of values (N, K, ...).

    A model may make maps of other sizes than the inputs have, or of a fixed size, which a head does not know.
    """
    axes = output.dim() - 2
    if not isinstance(target, Tensor) or axes not in (1, 2, 3):
        return output
    labels = target.dim() == output.dim() - 1 and not target.is_floating_point()
    size = target.shape[1:] if labels else target.shape[2:]
    if len(size) != axes or size == output.shape[2:] or len(target) != len(output):
        return output
    return nn.functional.interpolate(output, size=size, mode=_MODES[axes - 1])


def head_flops(tensors: Sequence[CrossingTensor], outputs: Sequence[CrossingTensor]) -> float:
    """Operations of the forward passes of heads; infinity: the shapes fit no head."""
    total, tensor = 0.0, tensors[-1]
    for output in outputs:
        kind = _kind(tensor, output)
        if kind is None:
            return math.inf
        entries, features = math.prod(tensor.shape), tensor.shape[1 if _is_map(tensor) else -1]
        if kind is _ToMap:
            total += 2 * _CHANNELS * sum(math.prod(one.shape) for one in _maps(tensors)[:-1])
            total += 2 * _CHANNELS * entries * 3 ** (len(tensor.shape) - 2)
            finest = _finest(tensors)
            total += 2 * _CHANNELS * math.prod(finest.shape) // finest.shape[1] * output.shape[1]
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


def _maps(tensors: Sequence[CrossingTensor]) -> list[CrossingTensor]:
    """The maps with as many axes as the last tensor, which is one."""
    axes = len(tensors[-1].shape)
    return [one for one in tensors if _is_map(one) and len(one.shape) == axes and one.batch == 0 and one.rows == 1]


def _finest(tensors: Sequence[CrossingTensor]) -> CrossingTensor:
    """The map with the most positions, the last one of several."""
    return max(reversed(_maps(tensors)), key=lambda one: math.prod(one.shape[2:]))


def _norm(tensor: CrossingTensor) -> type[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d]:
    """The batch norm of maps."""
    return (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[len(tensor.shape) - 3]


def _is_map(tensor: CrossingTensor) -> bool:
    return tensor.axis == 1 and len(tensor.shape) in (3, 4, 5)
