"""Split a directed acyclic graph into ordered segments, with the lightest possible heaviest segment.

On a networkx graph of plain numbers, without torch.
"""

import math
from collections.abc import Hashable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import networkx as nx

from dni_fx.errors import DniFxError
from dni_fx.partition.contraction import Contraction
from dni_fx.partition.instance import Instance, checked_budget, checked_objective, checked_segments
from dni_fx.partition.orders import is_chain
from dni_fx.partition.solve import CAP, solve
from dni_fx.partition.workload import Objective

__all__ = ["Partition", "has_one_order", "loads", "partition"]

CLOSE = 1e-9  # relative: a bound this close to a load proves the load optimal

ROUNDING = 1e-12  # relative


@dataclass(frozen=True)
class Partition:
    """Segments in order: every edge leads from one to the same or a later one."""

    segments: tuple[frozenset[Any], ...]
    loads: tuple[float, ...]  # of each segment
    load: float  # of the heaviest segment
    optimal: bool  # proven: no split into at most `segments` segments has a lighter heaviest segment
    lower_bound: float  # proven: no such split has a heaviest segment below this load


def partition(
    graph: "nx.DiGraph[Any]",
    segments: int,
    *,
    objective: str = "throughput",
    node_weight: str = "weight",
    transfer_weight: str = "transfer",
    together: Iterable[Iterable[Hashable]] = (),
    budget: float | None = None,
) -> Partition:
    """Split a graph into at most `segments` convex segments, none empty, so that the heaviest is as light as possible.

    The load of a segment is the sum of its nodes' weights, and

    - "throughput": the transfer of every output that leaves the segment (made inside, used in a later segment), and of
      every output that enters (made in an earlier segment, used inside).
    - "memory": the transfer of every output that is alive at either end of the segment: the output enters, leaves, or
      passes from an earlier segment to a later one. Each counts once.

    The method is exact where the lattice of down-sets is small near the places where cuts can be (Tarnawski et al.,
    "Efficient Algorithms for Device Placement of DNN Graph Operators", NeurIPS 2020, section 5), and for chains.
    Otherwise the best split along several topological orders is taken, and refined by moves and minimum cuts; the
    optimum lies between `lower_bound` and `load`. Which of equally heavy splits is found depends on the graph and
    its order, and on nothing else.

    Args:
        graph: Its edges say which node uses the output of which. Attributes that a node lacks count as 0.
        objective: The definition of a load.
        node_weight: The node attribute with the node's own share of a load.
        transfer_weight: The node attribute with the cost of moving the node's output once.
        together: Groups of nodes; each group stays in one segment, with all nodes on paths between its members.
        budget: Find the fewest segments (at most `segments`) with no load above this, up to rounding. `optimal` and
            `lower_bound` then hold for that number of segments. For fewer segments, the exact method proves that there
            is no such split; the other method only found none.

    Raises:
        DniFxError: If the graph is empty or has a cycle, a number is negative or not finite, an argument is wrong, a
            name in `together` is no node, or no split within the budget was found.
    """
    count, kind, most = checked_segments(segments), checked_objective(objective), checked_budget(budget)
    instance = Instance.of(graph, node_weight, transfer_weight)
    contraction, unit = instance.contract(together)
    total = math.fsum(instance.weights)
    count = min(count, len(contraction.workload.weight)) if total else 1
    needed = 1 if total <= most else math.ceil(min(total / most * (1 - ROUNDING), count)) if most else count
    for k in (count,) if budget is None else range(needed, count + 1):
        label, bound = _split(contraction, k, kind)
        parts = [frozenset(instance.nodes[i] for i in part) for part in contraction.segments(label, k) if part]
        weights = {"node_weight": node_weight, "transfer_weight": transfer_weight}
        each = loads(graph, parts, objective=kind, **weights)
        load = max(each)
        proven = bound is None or bound * unit >= load * (1 - CLOSE)
        found = Partition(tuple(parts), each, load, proven, load if bound is None or proven else bound * unit)
        if load <= most * (1 + ROUNDING):
            return found
    least = f"{load:g} is the least" if proven else f"{load:g} was found, {found.lower_bound:g} is a proven bound"
    raise DniFxError(
        f"no split into at most {count} segments is within the budget: the heaviest segment's load: {least} > {most:g}"
    )


def _split(contraction: Contraction, segments: int, objective: Objective) -> tuple[list[int], float | None]:
    if segments == 1:
        return [0] * len(contraction.workload.weight), None
    solution = solve(contraction.workload, segments, objective, CAP)
    return solution.label.tolist(), solution.lower_bound


def has_one_order(
    graph: "nx.DiGraph[Any]",
    *,
    node_weight: str = "weight",
    transfer_weight: str = "transfer",
    together: Iterable[Iterable[Hashable]] = (),
) -> bool:
    """Whether `partition` finds the segments of this graph along one order, since it has no branches that weigh."""
    contraction, _ = Instance.of(graph, node_weight, transfer_weight).contract(together)
    return is_chain(contraction.workload)


def loads(
    graph: "nx.DiGraph[Any]",
    segments: Sequence[AbstractSet[Any]],
    *,
    objective: str = "throughput",
    node_weight: str = "weight",
    transfer_weight: str = "transfer",
) -> tuple[float, ...]:
    """The load of each segment of any split, as `partition` defines it.

    Raises:
        DniFxError: If the segments do not hold each node once, or are not in order.
    """
    kind = checked_objective(objective)
    place = {node: i for i, segment in enumerate(segments) for node in segment}
    if place.keys() != set(graph) or sum(map(len, segments)) != len(graph):
        raise DniFxError("the segments do not hold each node of the graph once")
    terms: list[list[float]] = [[] for _ in segments]
    for node, home in ((node, place[node]) for node in graph):
        terms[home].append(float(graph.nodes[node].get(node_weight, 0)))
        others = {place[user] for user in graph.successors(node)} - {home}
        if any(other < home for other in others):
            raise DniFxError(f"the segments are not in order: {node!r} is used before the segment that it is in")
        if others:
            touched = {home, *others} if kind == "throughput" else range(home, max(others) + 1)
            for segment in touched:
                terms[segment].append(float(graph.nodes[node].get(transfer_weight, 0)))
    return tuple(map(math.fsum, terms))
