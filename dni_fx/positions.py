"""Choose where to cut: on a networkx DAG of plain numbers, without torch.

A cut is a position in the order of the graph: everything up to it lies below. Every prefix of a topological
order is closed under "is computed before", so every segment is convex and no node has to move.
"""

import math
from collections.abc import Callable, Set
from dataclasses import dataclass

import networkx as nx

from dni_fx.errors import DniFxError, NoLegalCutError

__all__ = ["Position", "balanced", "default_segments", "find", "snap"]


@dataclass(frozen=True)
class Position:
    """The boundary after one node."""

    index: int
    after: str
    crossing: tuple[str, ...]  # values below that are used above and carry gradient, in order
    bytes: int
    obstacle: str = ""  # why it is no legal cut; empty: it is one


def find(flow: "nx.DiGraph[str]") -> list[Position]:
    """Every boundary of the graph, in order, with what crosses it and whether it may be a cut.

    Nodes have the attributes that `costs.dataflow` writes, and come in a topological order.
    """
    nodes = list(flow)
    order = {name: i for i, name in enumerate(nodes)}
    last_use = {name: max((order[u] for u in flow.successors(name)), default=-1) for name in nodes}
    last_write: dict[int, int] = {}
    for i, name in enumerate(nodes):
        for storage in flow.nodes[name]["mutates"]:
            last_write[storage] = i
    total = sum(flow.nodes[name]["parameters"] for name in nodes)
    alive: dict[str, None] = {}
    result: list[Position] = []
    below = 0
    for i, name in enumerate(nodes[:-1]):
        below += flow.nodes[name]["parameters"]
        if last_use[name] > i:
            alive[name] = None
        for source in flow.predecessors(name):
            if last_use[source] <= i:
                alive.pop(source, None)
        crossing = tuple(n for n in alive if flow.nodes[n]["crosses"])
        obstacle = _obstacle(flow, alive, crossing, i, last_write, order)
        if not obstacle and not 0 < below < total:
            obstacle = f"no trainable parameter is {'below' if below == 0 else 'above'} it"
        size = sum(flow.nodes[n]["size"] for n in crossing)
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
        if flow.nodes[name].get("obstacle"):
            return str(flow.nodes[name]["obstacle"])
        if order.get(flow.nodes[name].get("gains", ""), -1) > index:
            return f"{name} crosses it without gradient, and {flow.nodes[name]['gains']} writes one into it above"
    if not crossing:
        return "nothing that carries gradient crosses it"
    for name in crossing:
        if not flow.nodes[name]["legal"]:
            return f"{name} carries gradient across it and is not one floating-point tensor"
    written = [
        storage for name in alive for storage in flow.nodes[name]["storages"] if last_write.get(storage, -1) > index
    ]
    if len(written) != len(set(written)):
        return "two values that share memory cross it, and the memory is written to above it"
    return ""


def default_segments(flow: "nx.DiGraph[str]") -> int:
    """How many segments "auto" makes: two layers in each, at most four.

    Few cuts train better than many (Jaderberg et al. 2017, Table 1: error grows with every interface).
    """
    return min(4, max(2, _layers_before(flow)[-1] // 2))


def balanced(flow: "nx.DiGraph[str]", segments: int | None, among: Set[str] = frozenset()) -> list[Position]:
    """The cuts that make the heaviest segment lightest, among the narrowest cuts there are.

    Between two layers only the place that fewest bytes cross counts, the last of equal ones: after normalisation and
    activation function, not before them. Cuts crossed by one tensor come first; wider ones are used only where those
    are too few. Of equally heavy plans, the one that fewer bytes cross.

    Args:
        segments: How many; None: as many as `default_segments` says, fewer where there are not enough cuts.
        among: Cut after these nodes only, if any of them is legal.

    Raises:
        NoLegalCutError: If no place is legal.
        DniFxError: If there cannot be so many segments.
    """
    layers = _layers_before(flow)
    everywhere = [p for p in find(flow) if not p.obstacle and 0 < layers[p.index + 1] < layers[-1]]
    if not everywhere and segments != 1:
        raise NoLegalCutError(
            "the model has no legal cut: a cut needs trainable parameters below and above it, and only "
            "floating-point tensors that carry gradient across it"
        )
    everywhere = [p for p in everywhere if p.after in among] or everywhere
    wanted = default_segments(flow) if segments is None else segments
    most = _most_segments(flow, everywhere)
    if segments is not None and segments > most:
        raise DniFxError(f"cannot make {segments} segments: the model has legal cuts for {most} at most")
    wanted = min(wanted, most)
    for width in sorted({len(p.crossing) for p in everywhere}):
        narrow = _narrowest(flow, [p for p in everywhere if len(p.crossing) <= width])
        if _most_segments(flow, narrow) >= wanted:
            return _lightest(flow, narrow, wanted)
    return []


def _layers_before(flow: "nx.DiGraph[str]") -> list[int]:
    """Layers among the first i nodes: nodes with a weight matrix, or where there is none, with any parameter."""
    has_matrix = any(flow.nodes[name].get("matrix") for name in flow)
    counts = [0]
    for name in flow:
        counts.append(counts[-1] + bool(flow.nodes[name]["matrix" if has_matrix else "parameters"]))
    return counts


def _most_segments(flow: "nx.DiGraph[str]", candidates: list[Position]) -> int:
    """Segments with a layer each: cut whenever there are more layers below."""
    owned = _layers_before(flow)
    return 1 + len({owned[p.index + 1] for p in candidates})


def _narrowest(flow: "nx.DiGraph[str]", candidates: list[Position]) -> list[Position]:
    """Of the places with the same layers below, the one that fewest bytes cross, the last of equal ones."""
    owned = _layers_before(flow)
    best: dict[int, Position] = {}
    for position in candidates:
        key = owned[position.index + 1]
        if key not in best or position.bytes <= best[key].bytes:
            best[key] = position
    return list(best.values())


def _lightest(flow: "nx.DiGraph[str]", candidates: list[Position], segments: int) -> list[Position]:
    """The least heaviest segment first; then, with no segment heavier than that, the fewest bytes crossing.

    One search for both would be wrong: the best plan's lower part need not be the lightest one below its last cut.
    """
    heaviest, _ = _search(flow, candidates, segments, math.inf, lambda score, load, _: max(score, load))
    _, chosen = _search(flow, candidates, segments, heaviest, lambda score, _, crossing: score + crossing)
    return chosen


def _search(
    flow: "nx.DiGraph[str]",
    candidates: list[Position],
    segments: int,
    limit: float,
    join: Callable[[float, float, int], float],
) -> tuple[float, list[Position]]:
    """Dynamic program for the least score of cuts that leave parameters in every segment and none above `limit`.

    Args:
        join: The score of a plan with one more segment, from the score so far, its load and the bytes that leave it.
    """
    work = [0.0]
    for name in flow:
        work.append(work[-1] + flow.nodes[name]["weight"])
    owned = _layers_before(flow)
    ends = [-1, *(p.index for p in candidates), len(work) - 2]
    bytes_ = [0, *(p.bytes for p in candidates), 0]
    best = [[math.inf] * len(ends) for _ in range(segments + 1)]
    came = [[0] * len(ends) for _ in range(segments + 1)]
    best[0][0] = 0.0
    for k in range(1, segments + 1):
        for j in range(1, len(ends)):
            for i in range(j):
                load = work[ends[j] + 1] - work[ends[i] + 1]
                if load > limit or owned[ends[j] + 1] == owned[ends[i] + 1]:
                    continue
                score = join(best[k - 1][i], load, bytes_[j])
                if score < best[k][j]:
                    best[k][j], came[k][j] = score, i
    chosen = []
    j = len(ends) - 1
    for k in range(segments, 1, -1):
        j = came[k][j]
        chosen.append(candidates[j - 1])
    return best[segments][-1], chosen[::-1]


def snap(flow: "nx.DiGraph[str]", everywhere: list[Position], node: str, name: str) -> Position:
    """The cut after `node`; where that gives a tuple, after the last element that is taken out of it.

    Args:
        everywhere: The positions of `flow`.
        name: What the person called it.

    Raises:
        DniFxError: If it is no legal cut.
    """
    index = next((p.index for p in everywhere if p.after == node), len(everywhere))
    group = {node} if flow.nodes[node]["tuple"] else set()
    while group and index + 1 < len(everywhere) and set(flow.predecessors(everywhere[index + 1].after)) <= group:
        index += 1
        if flow.nodes[everywhere[index].after]["tuple"]:
            group.add(everywhere[index].after)
    if index >= len(everywhere):
        raise DniFxError(f"cannot cut after {name!r}: nothing comes after it")
    position = everywhere[index]
    if not flow.nodes[node]["crosses"]:
        raise DniFxError(
            f"cannot cut after {name!r}: it gives {flow.nodes[node]['kind']}, which carries no gradient; "
            "cut after a floating-point tensor that depends on a trainable parameter"
        )
    if position.obstacle:
        raise DniFxError(f"cannot cut after {name!r}: {position.obstacle}")
    return position
