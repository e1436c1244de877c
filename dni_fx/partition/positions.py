"""Where a graph can be cut: on a networkx DAG of plain numbers, without torch.

A cut is a position in the order of the graph: all nodes up to the position lie below. A prefix of a topological order
holds, with each node, all nodes before it. So every segment is convex, and no node has to move.
"""

import itertools
from collections.abc import Callable, Set
from dataclasses import dataclass

import networkx as nx

from dni_fx.errors import DniFxError, NoLegalCutError
from dni_fx.partition.flow_node import flow_node

__all__ = [
    "MOST_CANDIDATES",
    "Candidate",
    "Position",
    "count_layers",
    "find_candidates",
    "find_positions",
    "position_after",
]

MOST_CANDIDATES = 200  # the time of the search grows with the square of this number


@dataclass(frozen=True)
class Position:
    """The boundary after one node."""

    index: int
    after: str
    crossing: tuple[str, ...]  # nodes below whose values are used above and carry gradient, in order
    bytes: int
    obstacle: str = ""  # why the position is no legal cut; empty: it is legal


def find_positions(flow: "nx.DiGraph[str]") -> list[Position]:
    """Find every position in order, with the values that cross it and the obstacle to a cut.

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
    states = {n: max((last_write.get(s, -1) for s in flow_node(flow, n).storages), default=-1) for n in nodes}
    states = {name: write for name, write in states.items() if flow_node(flow, name).is_state and write > order[name]}
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
        for state in [name for name, write in states.items() if order[name] <= i < write and not obstacle]:
            obstacle = f"a node above writes to {state}, which is the state for the next call"
        if not obstacle and not 0 < below < total:
            obstacle = f"no trainable parameter is {'below' if below == 0 else 'above'} the cut"
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
            return f"{name} crosses the cut without gradient, and {node.gradient_from} above writes a gradient into it"
    if not crossing:
        return "nothing that carries gradient crosses the cut"
    for name in crossing:
        if not flow_node(flow, name).can_have_synthesizer:
            return f"{name} carries gradient across the cut and is not one floating-point tensor"
    written = [
        storage for name in alive for storage in flow_node(flow, name).storages if last_write.get(storage, -1) > index
    ]
    if len(written) != len(set(written)):
        return "two values that share memory cross the cut, and a node above writes to this memory"
    return ""


@dataclass(frozen=True)
class Candidate:
    """A position that the compiler may choose; a layer lies between any two candidates."""

    position: Position
    depth: float  # share of the layers that lie below


def find_candidates(
    flow: "nx.DiGraph[str]",
    preferred: Set[str] = frozenset(),
    most: int = MOST_CANDIDATES,
    fits: Callable[[Position], bool] = lambda position: True,
) -> list[Candidate]:
    """Find the narrowest legal position that fits between any two layers, in order.

    The fewest tensors cross the narrowest position (where one tensor crosses, it dominates the outputs); of such
    positions, the fewest bytes; of such positions, it is the last one: after normalisation and activation function.

    Args:
        preferred: Cut only after these nodes, if one of them is legal.
        most: The most candidates: in a net with more layers, each is the narrowest position among several layers.
        fits: Whether a legal position may be a candidate.

    Raises:
        NoLegalCutError: If no position is legal.
    """
    layers = _layers_before(flow)
    legal = [p for p in find_positions(flow) if not p.obstacle and 0 < layers[p.index + 1] < layers[-1]]
    if not legal:
        raise NoLegalCutError(
            "the model has no legal cut: a cut needs trainable parameters below and above it, and only "
            "floating-point tensors that carry gradient across it"
        )
    for positions in ([p for p in legal if p.after in preferred], legal):
        groups: dict[int, list[Position]] = {}
        for position in positions:
            groups.setdefault(layers[position.index + 1] * min(most, layers[-1]) // layers[-1], []).append(position)
        narrowest = [next(filter(fits, sorted(group, key=_width)), None) for group in groups.values()]
        if any(narrowest):
            return [Candidate(p, layers[p.index + 1] / layers[-1]) for p in narrowest if p is not None]
    return []


def _width(position: Position) -> tuple[int, int, int]:
    """The narrowest position comes first; of equal ones, the last."""
    return len(position.crossing), position.bytes, -position.index


def count_layers(flow: "nx.DiGraph[str]") -> int:
    """The number of layers: between any two of them lies a candidate, if a position there is legal."""
    return _layers_before(flow)[-1]


def _layers_before(flow: "nx.DiGraph[str]") -> list[int]:
    """For each i, count the layers among the first i nodes.

    A layer is a node with a weight matrix; in a graph without any matrix, a node with any trainable parameter.
    """
    nodes = [flow_node(flow, name) for name in flow]
    any_matrix = any(node.has_matrix for node in nodes)
    is_layer = [node.has_matrix if any_matrix else node.parameters > 0 for node in nodes]
    return list(itertools.accumulate(is_layer, initial=0))


def position_after(flow: "nx.DiGraph[str]", positions: list[Position], node: str, name: str) -> Position:
    """The legal cut after `node`; after a node with a tuple, the cut after the last element taken out of the tuple.

    Args:
        positions: All positions of `flow`.
        name: The user's name for the node, for messages.

    Raises:
        DniFxError: If this cut is not legal.
    """
    index = next((p.index for p in positions if p.after == node), len(positions))
    tuples = {node} if flow_node(flow, node).is_tuple else set()
    while tuples and index + 1 < len(positions) and set(flow.predecessors(positions[index + 1].after)) <= tuples:
        index += 1
        if flow_node(flow, positions[index].after).is_tuple:
            tuples.add(positions[index].after)
    if index >= len(positions):
        raise DniFxError(f"cannot cut after {name!r}: nothing comes after it")
    position = positions[index]
    if not flow_node(flow, node).carries_gradient:
        raise DniFxError(
            f"cannot cut after {name!r}: its value is {flow_node(flow, node).description}, which carries no gradient; "
            "cut after a floating-point tensor that depends on a trainable parameter"
        )
    if position.obstacle:
        raise DniFxError(f"cannot cut after {name!r}: {position.obstacle}")
    return position
