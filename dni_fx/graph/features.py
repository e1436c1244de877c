"""The feature axis of a tensor: axis 1 of maps, the last axis of vectors and sequences."""

from typing import Any

import torch
from torch import fx, nn

from dni_fx.graph.record import NodeRecord, operation_name, record_of

__all__ = ["default_axis", "feature_axis", "fixed_axes"]

_MAPS = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)

_ROWS = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.RNNBase, nn.MultiheadAttention)

_MAP_FUNCTIONS = ("conv1d", "conv2d", "conv3d", "batch_norm", "group_norm")

_ROW_FUNCTIONS = ("linear", "layer_norm", "embedding", "scaled_dot_product_attention")

_MOVES = ("permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims")


def feature_axis(node: fx.Node, fetch: Any, record: NodeRecord) -> int:
    """Find the feature axis as the nearest layer upstream has it: 1 for maps (N, C, ...), -1 for vectors and sequences.

    Args:
        fetch: Looks up a module by its qualified name.
        record: The record of the node.
    """
    if record.shape is None or len(record.shape) < 3:
        return -1
    if node.op == "call_module":
        layer = fetch(node.target)
        if isinstance(layer, _MAPS):
            return 1
        if isinstance(layer, _ROWS):
            return -1
    name = operation_name(node)
    if name in _MAP_FUNCTIONS:
        return 1
    if name in _ROW_FUNCTIONS:
        return -1
    for source in node.all_input_nodes:
        operand = record_of(source)
        if source.op.startswith("call") and operand.carries_gradient and operand.shape is not None:
            axis = _carried(node, name, operand.shape, operand.axis, record.shape)
            if axis is not None:
                return axis
    return -1 if name in _MOVES else default_axis(len(record.shape))


def fixed_axes(record: NodeRecord) -> list[int]:
    """The axes of a tensor whose sizes never change: one of them can be the features of a synthesizer."""
    return [axis for axis in range(len(record.shape or ())) if axis != record.batch and axis not in record.free]


def default_axis(dimensions: int) -> int:
    """The feature axis of a tensor that comes from no known layer: 1 for maps of 4 or 5 axes, else -1."""
    return 1 if dimensions in (4, 5) else -1


def _carried(node: fx.Node, name: str, operand: tuple[int, ...], axis: int, shape: tuple[int, ...]) -> int | None:
    """The feature axis of the result, from the shape and axis of an operand; None: the axis is lost."""
    if name in _MOVES:
        return _moved(node, name, axis % len(operand), len(operand))
    if len(operand) == len(shape):
        return axis
    if axis == 1 and len(operand) > 2:  # flattened, or averaged over space
        return 1 if operand[:2] == shape[:2] else None
    return axis if operand[-1] == shape[-1] else None


def _moved(node: fx.Node, name: str, axis: int, rank: int) -> int | None:
    """Run the operation on a tensor with a different size in each dimension, and find the size of the axis."""
    known_by_size = torch.empty(list(range(1, rank + 1)), device="meta")
    try:
        moved = getattr(known_by_size, name)(*node.args[1:], **node.kwargs)
        place = list(moved.shape).index(axis + 1)
    except (TypeError, RuntimeError, ValueError):  # an argument is a node, not a number
        return None
    return {0: None, rank - 1: -1}.get(place, place)
