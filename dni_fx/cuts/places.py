"""The places where a captured model can be cut, as plain data for people."""

from dataclasses import dataclass

from torch import fx

from dni_fx.cost import CostModel
from dni_fx.cuts.asked import last_nodes
from dni_fx.graph import crossing_tensor, record_of
from dni_fx.partition import Position
from dni_fx.plans import CrossingTensor

__all__ = ["Place", "places_of"]


@dataclass(frozen=True)
class Place:
    """A place where a model can be cut.

    Attributes:
        name: What `cuts=` takes: the module that ends here, or else the last node below the cut.
        after: The last node below the cut.
        tensors: The tensors that cross the cut.
        bytes: The bytes of these tensors.
        forward: The share of the forward time below the cut.
        saved: The share of the memory that autograd keeps for the backward pass, below the cut.
        line: The place and text of the line of the person's code that computes the last node; empty: unknown.
    """

    name: str
    after: str
    tensors: tuple[CrossingTensor, ...]
    bytes: int
    forward: float
    saved: float
    line: tuple[str, str]


def places_of(graph: fx.Graph, cost_model: CostModel, positions: list[Position]) -> tuple[Place, ...]:
    """These positions of an annotated graph, with their names and shares."""
    nodes = {node.name: node for node in graph.nodes}
    ends: dict[str, list[str]] = {}  # the last node of each call of a module
    for (module, _), node in last_nodes(graph).items():
        ends.setdefault(module, []).append(node.name)
    modules: dict[str, list[str]] = {}
    for module, last in ends.items():
        if module and len(last) == 1:
            modules.setdefault(last[0], []).append(module)
    forward, kept = cost_model.forward, cost_model.memory.kept
    return tuple(
        Place(
            name=min(modules.get(position.after, [position.after]), key=len),
            after=position.after,
            tensors=tuple(crossing_tensor(nodes[name]) for name in position.crossing),
            bytes=position.bytes,
            forward=_share(forward[position.index + 1], forward[-1]),
            saved=_share(kept[position.index + 1], kept[-1]),
            line=record_of(nodes[position.after]).line,
        )
        for position in positions
    )


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0
