"""Where a graph can be cut: on a networkx DAG of plain numbers, without torch.

A cut is a position in the order of the graph: everything up to it lies below. Every prefix of a topological
order is closed under "is computed before", so every segment is convex and no node has to move.
"""

import itertools
from collections.abc import Set
from dataclasses import dataclass

import networkx as nx

from dni_fx.errors import DniFxError, NoLegalCutError
from dni_fx.partition.flow_node import flow_node

__all__ = ["MOST_CANDIDATES", "Candidate", "Position", "find_candidates", "find_positions", "snap"]

MOST_CANDIDATES = 200  # to choose among takes time that grows with their square


@dataclass(frozen=True)
class Position:
    """The boundary after one node."""

    index: int
    after: str
    crossing: tuple[str, ...]  # values below that are used above and carry gradient, in order
    bytes: int
    obstacle: str = ""  # why it is no legal cut; empty: it is one


def find_positions(flow: "nx.DiGraph[str]") -> list[Position]:
    """Every boundary of the graph, in order, with what crosses it and whether it may be a cut.

    Args:
        flow: Nodes in a topological order, each with its `FlowNode`, as `graph.dataflow` makes it.
    """
    nodes = list(flow)
    order = {name: i for i, name in enumerate(nodes)}
    last_use = {name: max((order[u] for u in flow.successors(name)), default=-1) for name in nodes}
    last_write: dict[int, int] = {}
    for i, name in enumerate(nodes):
        for storage in flow_node(flow, name).mutates:
            last_write[storage] = i
    total = sum(flow_node(flow, name).parameters for name in nodes)
    alive: dict[str, None] = {}
    result: list[Position] = []
    below = 0
    for i, name in enumerate(nodes[:-1]):
        below += flow_node(flow, name).parameters
        if last_use[name] > i:
            alive[name] = None
        for source in flow.predecessors(name):
            if last_use[source] <= i:
                alive.pop(source, None)
        crossing = tuple(n for n in alive if flow_node(flow, n).carries_gradient)
        obstacle = _obstacle(flow, alive, crossing, i, last_write, order)
        if not obstacle and not 0 < below < total:
            obstacle = f"no trainable parameter is {'below' if below == 0 else 'above'} it"
        size = sum(flow_node(flow, n).bytes for n in crossing)
        result.append(Position(i, name, crossing, size, obstacle))
    return result


def _obstacle(
    flow: "nx.DiGraph[str]",
    alive: dict[str, None],
    crossing: tuple[str, ...],
    index: int,
    last_write: dict[int, int],
    order: dict[str, int],
) -> str:
    for name in alive:
        node = flow_node(flow, name)
        if node.obstacle:
            return node.obstacle
        if order.get(node.gradient_from, -1) > index:
            return f"{name} crosses it without gradient, and {node.gradient_from} writes one into it above"
    if not crossing:
        return "nothing that carries gradient crosses it"
    for name in crossing:
        if not flow_node(flow, name).can_have_synthesizer:
            return f"{name} carries gradient across it and is not one floating-point tensor"
    written = [
        storage for name in alive for storage in flow_node(flow, name).storages if last_write.get(storage, -1) > index
    ]
    if len(written) != len(set(written)):
        return "two values that share memory cross it, and the memory is written to above it"
    return ""


@dataclass(frozen=True)
class Candidate:
    """A place that the compiler may choose; between any two of them lies a layer."""

    position: Position
    depth: float  # share of the layers that lie below it


def find_candidates(
    flow: "nx.DiGraph[str]", among: Set[str] = frozenset(), most: int = MOST_CANDIDATES
) -> list[Candidate]:
    """The places that are worth choosing among: between two layers the narrowest legal one, in order.

    The narrowest is that which fewest tensors cross, where one crosses it dominates the outputs; then that which
    fewest bytes cross; then the last: after normalisation and activation function, not before them.

    Args:
        among: Cut after these nodes only, if any of them is legal.
        most: Of a net with more layers than this, the narrowest place among several layers each.

    Raises:
        NoLegalCutError: If no place is legal.
    """
    layers = _layers_before(flow)
    legal = [p for p in find_positions(flow) if not p.obstacle and 0 < layers[p.index + 1] < layers[-1]]
    if not legal:
        raise NoLegalCutError(
            "the model has no legal cut: a cut needs trainable parameters below and above it, and only "
            "floating-point tensors that carry gradient across it"
        )
    narrowest: dict[int, Position] = {}
    for position in [p for p in legal if p.after in among] or legal:
        group = layers[position.index + 1] * min(most, layers[-1]) // layers[-1]
        width = (len(position.crossing), position.bytes)
        if group not in narrowest or width <= (len(narrowest[group].crossing), narrowest[group].bytes):
            narrowest[group] = position
    return [Candidate(position, layers[position.index + 1] / layers[-1]) for position in narrowest.values()]


def _layers_before(flow: "nx.DiGraph[str]") -> list[int]:
    """Layers among the first i nodes: nodes with a weight matrix, or where there is none, with any parameter."""
    nodes = [flow_node(flow, name) for name in flow]
    any_matrix = any(node.has_matrix for node in nodes)
    is_layer = [node.has_matrix if any_matrix else node.parameters > 0 for node in nodes]
    return list(itertools.accumulate(is_layer, initial=0))


def snap(flow: "nx.DiGraph[str]", everywhere: list[Position], node: str, name: str) -> Position:
    """The cut after `node`; where that gives a tuple, after the last element that is taken out of it.

    Args:
        everywhere: The positions of `flow`.
        name: What the person called it.

    Raises:
        DniFxError: If it is no legal cut.
    """
    index = next((p.index for p in everywhere if p.after == node), len(everywhere))
    group = {node} if flow_node(flow, node).is_tuple else set()
    while group and index + 1 < len(everywhere) and set(flow.predecessors(everywhere[index + 1].after)) <= group:
        index += 1
        if flow_node(flow, everywhere[index].after).is_tuple:
            group.add(everywhere[index].after)
    if index >= len(everywhere):
        raise DniFxError(f"cannot cut after {name!r}: nothing comes after it")
    position = everywhere[index]
    if not flow_node(flow, node).carries_gradient:
        raise DniFxError(
            f"cannot cut after {name!r}: it gives {flow_node(flow, node).description}, which carries no gradient; "
            "cut after a floating-point tensor that depends on a trainable parameter"
        )
    if position.obstacle:
        raise DniFxError(f"cannot cut after {name!r}: {position.obstacle}")
    return position
