"""What a captured model returns: the structure of its result, and what is known of each tensor in it."""

from typing import Any, NamedTuple

from torch import Tensor, fx

from dni_fx.graph import record_of, returned_nodes

__all__ = ["GivenTensor", "Place", "Result", "result_of_graph"]


class Place(int):
    """The position of a tensor among all that a model returns. A class, since a result may hold plain numbers, too."""


class GivenTensor(NamedTuple):
    """A value that a model returns."""

    shape: tuple[int, ...] | None  # None: it is no tensor
    carries_gradient: bool


class Result(NamedTuple):
    """What one call of a model returns."""

    structure: Any  # the result, with a `Place` where each of `given` is
    given: list[GivenTensor]


def result_of_graph(graph: fx.Graph) -> Result:
    """The result of an annotated graph, one `Place` for each node that it returns."""
    nodes = returned_nodes(graph)
    count = iter(range(len(nodes)))
    structure: Any = fx.node.map_arg(graph.output_node().args[0], lambda node: Place(next(count)))
    values = [node.meta["val"] for node in nodes]
    shapes = [tuple(value.shape) if isinstance(value, Tensor) else None for value in values]
    carries = [record_of(node).carries_gradient for node in nodes]
    return Result(structure, list(map(GivenTensor, shapes, carries)))
