"""Local search from one split to lighter ones, for graphs with too many down-sets for the exact method.

Nodes of the heaviest segments move to the segments beside them. Between two segments, a minimum cut (Ford & Fulkerson)
finds the least cost of crossing outputs; edges that keep the order of the graph have no capacity limit. The number of
evaluations is limited, not the time: results do not depend on the machine.
"""

from collections.abc import Hashable, Iterator

import networkx as nx
import numpy as np
from networkx.algorithms.flow import boykov_kolmogorov

from dni_fx.partition.workload import FLOATING, Integers, Numbers, Objective, Workload

__all__ = ["refine"]

EVALUATIONS = 6_000_000  # number of evaluations times the size of the graph

NEAR = 200  # nodes on either side of a cut that may change sides


def refine(work: Workload, label: Integers, segments: int, objective: Objective) -> Integers:
    """Find a split that is lighter or equal: splits compare by the heaviest segment, then by the second, and so on."""
    left = max(20, EVALUATIONS // (len(work.weight) + len(work.used) + 1))
    label, key = label.copy(), _key(work, label, segments, objective)
    improved = True
    while improved and left > 0:
        improved = False
        for changed in _neighbours(work, label, segments, objective):
            left -= 1
            new = _key(work, changed, segments, objective)
            if new < key:
                label, key, improved = changed, new, True
                break
            if left <= 0:
                break
    return label


def _key(work: Workload, label: Integers, segments: int, objective: Objective) -> tuple[float, ...]:
    loads = np.sort(work.loads_of(label, segments, objective))[::-1]
    return tuple(np.round(loads / work.total, 12).tolist())


def _neighbours(work: Workload, label: Integers, segments: int, objective: Objective) -> Iterator[Integers]:
    loads = work.loads_of(label, segments, objective)
    for segment in np.argsort(-loads, kind="stable").tolist()[: max(2, segments // 4)]:
        for step in (1, -1):
            if 0 <= segment + step < segments:
                for node in _movable(work, label, segment, step):
                    changed = label.copy()
                    changed[node] += step
                    yield changed
        for lower in (segment - 1, segment):
            if 0 <= lower < segments - 1:
                changed = _least_cut(work, label, lower, loads)
                if (changed != label).any():
                    yield changed


def _movable(work: Workload, label: Integers, segment: int, step: int) -> list[int]:
    """Nodes that may move one segment up (step 1) or down (step -1), heaviest first."""
    beside = work.after if step > 0 else work.before
    nodes = np.flatnonzero(label == segment).tolist()
    free = [node for node in nodes if all(label[other] != segment for other in beside[node])]
    return sorted(free, key=lambda node: (-work.weight[node], node))


def _least_cut(work: Workload, label: Integers, lower: int, loads: Numbers) -> Integers:
    """Move nodes near one cut so that the outputs that cross this cut cost least.

    The nodes near the cut weigh so little that neither segment can become the heaviest.
    """
    below, above = np.flatnonzero(label == lower)[::-1], np.flatnonzero(label == lower + 1)
    room = loads.max() - loads
    near: set[int] = set()
    for nodes, allowed in ((below, room[lower + 1]), (above, room[lower])):
        count = int(np.searchsorted(np.cumsum(work.weight[nodes]), allowed, side="right"))
        near.update(nodes[: min(count, NEAR)].tolist())
    if not near:
        return label
    network = _network(work, label, lower, near)
    _, (side, _) = nx.minimum_cut(network, "below", "above", flow_func=boykov_kolmogorov)
    changed = label.copy()
    for node in near:
        changed[node] = lower if node in side else lower + 1
    return changed


def _network(work: Workload, label: Integers, lower: int, near: set[int]) -> "nx.DiGraph[Hashable]":
    """The flow network of a cut: far nodes are "below" or "above"; an output is a node on the side of its last user."""

    def name(node: int) -> Hashable:
        return node if node in near else "below" if label[node] <= lower else "above"

    network: nx.DiGraph[Hashable] = nx.DiGraph()
    network.add_nodes_from(("below", "above"))
    for node in sorted(near):
        for source in work.before[node]:
            network.add_edge(name(node), name(source))  # without a capacity: never cut
        for user in work.after[node]:
            network.add_edge(name(user), name(node))
    close = np.zeros(len(label), dtype=bool)
    close[sorted(near)] = True
    touched = np.zeros(len(work.cost), dtype=bool)
    touched[work.used[close[work.user]]] = True
    touched |= (work.producer != FLOATING) & close[work.producer]
    for output in np.flatnonzero(touched & (work.producer != FLOATING)).tolist():
        network.add_edge(name(int(work.producer[output])), ("output", output), capacity=float(work.cost[output]))
    for use in np.flatnonzero(touched[work.used]).tolist():
        network.add_edge(("output", int(work.used[use])), name(int(work.user[use])))
    return network
