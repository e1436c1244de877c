"""The result of a captured model: its structure, and the shape of each returned value."""

from typing import Any, NamedTuple

from torch import Tensor, fx

from dni_fx.graph import record_of, returned_nodes

__all__ = ["Result", "ReturnedIndex", "ReturnedValue", "result_of_graph"]


class ReturnedIndex(int):
    """The index of a returned value, in the place of the value. Not a plain int, since a result may hold ints too."""


class ReturnedValue(NamedTuple):
    """A value that a model returns."""

    shape: tuple[int, ...] | None  # None: the value is no tensor
    carries_gradient: bool


class Result(NamedTuple):
    """The result of one call of a model."""

    structure: Any  # the nested result, with a `ReturnedIndex` for each of `values`
    values: list[ReturnedValue]


def result_of_graph(graph: fx.Graph) -> Result:
    """The result of an annotated graph: one value for each node that the graph returns."""
    nodes = returned_nodes(graph)
    indices = iter(range(len(nodes)))
    structure: Any = fx.node.map_arg(graph.output_node().args[0], lambda node: ReturnedIndex(next(indices)))
    values = [node.meta["val"] for node in nodes]
    shapes = [tuple(value.shape) if isinstance(value, Tensor) else None for value in values]
    carries = [record_of(node).carries_gradient for node in nodes]
    return Result(structure, list(map(ReturnedValue, shapes, carries)))
