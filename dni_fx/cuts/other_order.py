"""Another order of the nodes than the traced one: that of the segments that `partition` finds on the same graph.

A cut is a place in an order. Where branches do not use each other, as two towers, another order has places that fewer
tensors cross.
"""

import itertools
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import networkx as nx
from networkx.utils import UnionFind
from torch import fx

from dni_fx.cuts.search import CHARGE
from dni_fx.graph import kept_order
from dni_fx.partition import Objective, flow_node, has_one_order, next_places, partition

__all__ = ["OtherOrder", "other_order"]

_LIGHTER = 1 - 1e-9  # relative: sums of floats are not exact

_VALUE = "value of"

Pair = tuple[str, str]


class OtherOrder(NamedTuple):
    """An order in which the heaviest segment is lighter, if the nodes may run in it."""

    names: tuple[str, ...] = ()  # of all nodes; empty: there is none
    kept: str = ""  # why the nodes have to stay as traced; empty: they do not have to


def other_order(graph: fx.Graph, flow: "nx.DiGraph[str]", segments: int, objective: Objective) -> OtherOrder:
    """Find another order of the nodes of an annotated graph.

    Args:
        flow: The result of `graph.dataflow`.
        segments: The most segments.
    """
    weights = _weights(flow, objective)
    together = [*_uncuttable(flow), *_stretches(flow, weights)]
    if has_one_order(_workload(flow, weights, objective, ()), together=together):
        return OtherOrder()
    traced = list(flow)

    def split(pairs: Collection[Pair]) -> tuple[float, tuple[str, ...]]:
        """The load of the heaviest segment of the best split, and the order of its segments."""
        work = _workload(flow, weights, objective, pairs)
        whole: list[Sequence[Hashable]] = [*together, *([name, (_VALUE, name)] for name, _ in pairs)]
        found = partition(work, segments, together=whole, objective=objective)
        place = {name: i for i, segment in enumerate(found.segments) for name in segment}
        inputs = {node.name for node in graph.nodes if node.op == "placeholder"}  # which generated code has first
        return found.load, tuple(sorted(traced, key=lambda name: -1 if name in inputs else place[name]))

    limit = split(list(itertools.pairwise(traced)))[0] * _LIGHTER
    load, names = split(())
    if load >= limit or list(names) == traced:
        return OtherOrder()
    kept = kept_order(graph)
    if kept.forbids(graph, names):
        load, names = (limit, ()) if kept.whole else split(kept.pairs)
    if load >= limit or kept.forbids(graph, names):
        return OtherOrder(kept=kept.reason)
    return OtherOrder(names)


def _weights(flow: "nx.DiGraph[str]", objective: Objective) -> dict[str, float]:
    """The load of each node. A light one without gradient, such as that of a mask, weighs nothing: it can lie anywhere.

    For memory, the bytes that autograd keeps; else the time.
    """
    found: dict[str, float] = {}
    for name in flow:
        node = flow_node(flow, name)
        found[name] = float(sum(node.saves.values())) if objective == "memory" else node.forward + node.backward
    light = CHARGE * sum(found.values())
    return {
        name: weight if flow_node(flow, name).carries_gradient or weight > light else 0.0
        for name, weight in found.items()
    }


def _stretches(flow: "nx.DiGraph[str]", weights: Mapping[str, float]) -> list[list[str]]:
    """Groups of nodes in which a cut saves less than a further synthesizer is charged.

    They are made of light stretches, each from a value to the next value that every way to the outputs goes through.
    """
    light = CHARGE * sum(weights.values())
    *_, output = flow
    next_place = next_places(flow, list(flow.predecessors(output)))
    groups: UnionFind[str] = UnionFind(flow)
    loads = dict(weights)
    for name in [name for name in flow if next_place.get(name) in flow]:
        stretch = _stretch(flow, name, next_place, weights, light)
        load = sum(loads[root] for root in dict.fromkeys(groups[one] for one in (name, *stretch)))
        if stretch and load < light:
            groups.union(name, *stretch)
            loads[groups[name]] = load
    return [sorted(group) for group in groups.to_sets() if len(group) > 1]


def _stretch(
    flow: "nx.DiGraph[str]", name: str, next_place: Mapping[str, str], weights: Mapping[str, float], light: float
) -> list[str]:
    """The nodes on the ways from a node to its next place; none if they are not light, or use other branches."""
    found: dict[str, None] = {}
    waiting, load = [name], 0.0
    while waiting:
        for user in flow.successors(waiting.pop()):
            if user in next_place and user not in found:
                found[user] = None
                load += weights[user]
                waiting += [user] if user != next_place[name] else []
        if load >= light:
            return []
    sources = {source for one in found for source in flow.predecessors(one) if source in next_place}
    return list(found) if sources <= {name, *found} else []


def _uncuttable(flow: "nx.DiGraph[str]") -> list[list[str]]:
    """Nodes, each with its users, that no cut may part."""
    found = []
    for name in flow:
        node = flow_node(flow, name)
        if node.obstacle or (node.carries_gradient and not node.can_have_synthesizer):
            found.append([name, *flow.successors(name)])
        if node.gradient_from:
            found.append([name, node.gradient_from])
    return found


def _workload(
    flow: "nx.DiGraph[str]", weights: Mapping[str, float], objective: Objective, pairs: Collection[Pair]
) -> "nx.DiGraph[Any]":
    """The graph for `partition`: what crosses a cut is charged as a synthesizer, and for memory costs its bytes.

    Args:
        pairs: The first node of each stays before the second. Its value is a node of its own, which alone crosses cuts.
    """
    charge = CHARGE * sum(weights.values())
    made = {name: (_VALUE, name) for name, _ in pairs}
    work: nx.DiGraph[Any] = nx.DiGraph()
    for name in flow:
        node = flow_node(flow, name)
        transfer = charge + node.bytes * (objective == "memory") if node.carries_gradient else 0.0
        work.add_node(name, weight=weights[name])
        work.add_node(made.get(name, name), transfer=transfer)
    work.add_edges_from((made.get(source, source), user) for source, user in flow.edges)
    work.add_edges_from([*made.items(), *pairs])
    return work
