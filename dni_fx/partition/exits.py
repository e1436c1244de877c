"""The route of an exit: the cheapest way from a cut to the outputs, on a networkx DAG of plain numbers, without torch.

A route runs some of the nodes above the cut. It leaves residual branches out: where a node adds two tensors that
depend on the same crossing tensors, the route may take one of the two, unless both are asked for. Where no residual
branch is left, it goes on from a tensor at a later tensor of the same shape, which the same operation computes. The
next units above the cut run whole. Every crossing tensor that the ends depend on is used, since it would get no
gradient else.
"""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import networkx as nx

from dni_fx.partition.flow_node import add_flow_node, flow_node
from dni_fx.partition.positions import Position

__all__ = ["Route", "find_route", "is_in_branch", "next_places", "places_above", "with_writes"]

_SINK = "(outputs)"  # no name of a node


@dataclass(frozen=True)
class Route:
    """The nodes of an exit.

    Attributes:
        nodes: Names of the nodes that run, in the order of the graph.
        bypassed: For each node that does not run, but whose value is used: the node whose value replaces it.
        units: The number of units above the cut that run whole; None: all that is above the cut runs.
        kept: The nodes of these units.
    """

    nodes: tuple[str, ...]
    bypassed: dict[str, str]
    units: int | None
    kept: tuple[str, ...] = ()


class _Way(NamedTuple):
    """The cheapest way to compute a value."""

    cost: float = math.inf
    instead: str | None = None  # the node whose value replaces this one; None: the node runs
    through: str | None = None  # the input of the node that depends on the crossing tensors


@dataclass
class _Ways:
    """The cheapest ways to compute a value: from the crossing tensors, and in any way."""

    dependent: _Way
    free: _Way


def with_writes(flow: "nx.DiGraph[str]") -> "nx.DiGraph[str]":
    """A flow with an edge from each node that writes to memory to the nodes that read this memory next.

    A node whose write is read by another name, as in `y.add_(x); relu(y)`, is replaced by no value.
    """
    found = flow.copy()
    writers: dict[int, str] = {}  # by storage, the last node that writes to it
    for name in flow:
        read = {storage for source in flow.predecessors(name) for storage in flow_node(flow, source).storages}
        for writer in {writers[storage] for storage in read if storage in writers} - set(flow.predecessors(name)):
            found.add_edge(writer, name)
            add_flow_node(found, writer, replace(flow_node(found, writer), is_sum=False, kind=f"{writer}: writes"))
        writers |= dict.fromkeys(flow_node(flow, name).mutates, name)
    return found


def find_route(
    flow: "nx.DiGraph[str]",
    position: Position,
    ends: Sequence[str],
    units: int | None,
    next_place: Mapping[str, str] | None = None,
    both: Collection[str] = (),
) -> Route | None:
    """Find the route of an exit from a cut.

    Args:
        flow: Nodes in a topological order, each with its `FlowNode`.
        position: The cut.
        ends: The nodes that the exit computes: what the loss takes.
        units: The number of next units that run whole; None: all, so that the exit is the rest of the model.
        next_place: The result of `next_places`, for several routes of one flow; None: it is found here.
        both: Sums that no single term replaces, such as `projection_sums`.

    Returns:
        The route; None: no end depends on the crossing tensors.
    """
    names = list(flow)
    above = names[position.index + 1 :]
    order = {name: place for place, name in enumerate(names)}
    origins = _origins(flow, above, position.crossing)
    dependent = [name for name in origins if name not in position.crossing]
    wanted = [end for end in dict.fromkeys(ends) if end in origins]
    if not wanted:
        return None
    places = places_above(next_places(flow, ends) if next_place is None else next_place, position.crossing)
    whole, count = (set(above), None) if units is None else _next_units(flow, places, dependent, order, units)
    jumps = _jumps(flow, places, whole, _joins(flow, origins))
    ways = _all_ways(flow, position, above, whole, jumps, origins, both)
    nodes, bypassed = _follow(flow, ways, ends, wanted, above)
    if not frozenset().union(*(origins[end] for end in wanted)) <= _used(flow, nodes, bypassed, wanted, origins):
        return find_route(flow, position, ends, None, next_place)  # a tensor would get no gradient
    kept = () if units is None else tuple(name for name in nodes if name in whole)
    return Route(tuple(nodes), bypassed, count, kept)


def is_in_branch(flow: "nx.DiGraph[str]", places: Sequence[str], position: Position) -> bool:
    """Whether a cut lies in a residual branch: the first place above joins the crossing tensors by a sum."""
    return bool(places) and places[0] not in position.crossing and flow_node(flow, places[0]).is_sum


def _origins(flow: "nx.DiGraph[str]", above: Sequence[str], crossing: Sequence[str]) -> dict[str, frozenset[str]]:
    """The crossing tensors whose gradient each node above the cut carries, if any; of a crossing tensor, itself."""
    found = {name: frozenset([name]) for name in crossing}
    for name in above:
        origins: frozenset[str] = frozenset().union(*(found.get(source, ()) for source in flow.predecessors(name)))
        if origins and flow_node(flow, name).carries_gradient:
            found[name] = origins
    return found


def next_places(flow: "nx.DiGraph[str]", ends: Sequence[str]) -> dict[str, str]:
    """For each value that carries gradient from the ends: the next value that every way to the ends goes through.

    These are the immediate dominators of the reversed graph; the last ones lead to no value of the graph.
    """
    carries = {name for name in flow if flow_node(flow, name).carries_gradient}
    ways: nx.DiGraph[str] = nx.DiGraph()
    ways.add_edges_from((a, b) for a, b in flow.edges if a in carries and b in carries)
    ways.add_edges_from((end, _SINK) for end in ends if end in carries)
    if _SINK not in ways:
        return {}
    ways = ways.subgraph(nx.ancestors(ways, _SINK) | {_SINK})
    found: dict[str, str] = dict(nx.immediate_dominators(ways.reverse(copy=False), _SINK))
    return found


def places_above(next_place: Mapping[str, str], crossing: Sequence[str]) -> list[str]:
    """The values that every way from the crossing tensors to the ends goes through, in order.

    Args:
        next_place: The result of `next_places`.
    """
    chains = [_chain(next_place, name) for name in crossing if name in next_place]
    shared = set(chains[0]).intersection(*chains[1:]) if chains else set()
    return [place for place in chains[0] if place in shared] if chains else []


def _chain(next_place: Mapping[str, str], place: str) -> list[str]:
    found: list[str] = []
    while place != _SINK:
        found.append(place)
        place = next_place[place]
    return found


def _next_units(
    flow: "nx.DiGraph[str]", places: Sequence[str], dependent: Collection[str], order: dict[str, int], units: int
) -> tuple[set[str], int]:
    """The nodes of the next units, and the number of units: a unit ends at a place, and has a layer.

    Where some units mix positions, as attention does, the next of these count: the others need them.
    """
    stretches: list[list[str]] = []
    begin = -1
    for place in places:
        stretch = [name for name in dependent if begin < order[name] <= order[place]]
        begin = order[place]
        if any(flow_node(flow, name).is_layer for name in stretch):
            stretches.append(stretch)
    mixing = [stretch for stretch in stretches if any(flow_node(flow, name).mixes for name in stretch)]
    kept = (mixing or stretches)[:units]
    return {name for stretch in kept for name in stretch}, len(kept)


def _joins(flow: "nx.DiGraph[str]", origins: Collection[str]) -> list[str]:
    """The sums with another stream, such as a decoder's: with a term that does not depend on the crossing tensors."""
    return [
        name
        for name in origins
        if flow_node(flow, name).is_sum and any(source not in origins for source in flow.predecessors(name))
    ]


def _jumps(
    flow: "nx.DiGraph[str]", places: Sequence[str], whole: Collection[str], joins: Sequence[str]
) -> dict[str, list[str]]:
    """For each place, the earlier places whose values may replace its value: of the same kind and shape.

    After the last sum comes the tail, in which nothing is replaced. A jump over the sum with another stream would
    leave that stream out.
    """
    sums = [i for i, place in enumerate(places) if flow_node(flow, place).is_sum]
    end = sums[-1] + 1 if sums else len(places)
    begin = max((i for i, place in enumerate(places) if place in whole), default=0)
    order = {name: place for place, name in enumerate(flow)}
    found: dict[str, list[str]] = {}
    kinds = [flow_node(flow, place).kind for place in places]
    is_layer = (flow_node(flow, name).is_layer for name in flow)
    layers = dict(zip(flow, itertools.accumulate(is_layer), strict=True))
    for i in range(begin + 1, end):
        found[places[i]] = [
            places[j]
            for j in range(begin, i)
            if kinds[j] == kinds[i]
            and layers[places[j]] < layers[places[i]]  # a scale, or an activation function, is not left out alone
            and not any(order[places[j]] < order[join] <= order[places[i]] for join in joins)
        ]
    return found


def _all_ways(
    flow: "nx.DiGraph[str]",
    position: Position,
    above: Sequence[str],
    whole: Collection[str],
    jumps: dict[str, list[str]],
    origins: Mapping[str, frozenset[str]],
    both: Collection[str],
) -> dict[str, _Ways]:
    """The cheapest ways to compute every value that the exit may use."""
    ways: dict[str, _Ways] = {}
    at_hand = _Ways(_Way(), _Way(0.0))
    crossing = _Ways(_Way(0.0), _Way(0.0))
    for name in flow:
        ways[name] = crossing if name in position.crossing else at_hand
    for name in above:
        has_choice = flow_node(flow, name).is_sum and name not in whole and name not in both
        terms = _replacing_terms(flow, name, origins) if has_choice else []
        ways[name] = _cheapest(flow, name, ways, [] if name in whole else jumps.get(name, []), terms)
        if name not in origins:  # such as a mask, made from a crossing tensor
            ways[name] = _Ways(_Way(), ways[name].free)
    return ways


def _replacing_terms(flow: "nx.DiGraph[str]", name: str, origins: Mapping[str, frozenset[str]]) -> list[str]:
    """The terms that may replace a sum: each depends on all crossing tensors that the sum depends on."""
    return [source for source in flow.predecessors(name) if origins.get(source) == origins.get(name, ())]


def _cheapest(
    flow: "nx.DiGraph[str]",
    name: str,
    ways: dict[str, _Ways],
    jumps: Sequence[str],
    terms: Sequence[str],
) -> _Ways:
    node = flow_node(flow, name)
    sources = list(flow.predecessors(name))
    # A sum counts as free: a term that costs nothing is not left out.
    cost = (0.0 if node.is_sum else node.forward) + sum(ways[source].free.cost for source in sources)
    extra = {source: ways[source].dependent.cost - ways[source].free.cost for source in sources}
    through = min(extra, key=lambda source: extra[source], default=None)
    from_crossing = [_Way(cost + (math.inf if through is None else extra[through]), None, through)]
    in_any_way = [_Way(cost)]
    others = [source for source in sources if ways[source].dependent.cost == math.inf]
    if terms:
        # A term that does not depend on the crossing tensors stays, unless it alone replaces the sum.
        from_crossing += [_Way(ways[source].dependent.cost, source, source) for source in terms if not others]
        in_any_way += [_Way(ways[source].free.cost, source) for source in others or terms]
    for place in jumps:
        from_crossing.append(_Way(ways[place].dependent.cost, place, place))
        in_any_way.append(_Way(ways[place].free.cost, place))
    return _Ways(min(from_crossing, key=_cost), min(in_any_way, key=_cost))


def _cost(way: _Way) -> float:
    return way.cost


def _follow(
    flow: "nx.DiGraph[str]",
    ways: dict[str, _Ways],
    ends: Sequence[str],
    wanted: Collection[str],
    above: Sequence[str],
) -> tuple[list[str], dict[str, str]]:
    """The nodes that run, and the nodes that are replaced, on the cheapest ways to the ends."""
    needed: dict[str, bool] = {}  # whether the value has to depend on the crossing tensors

    def need(name: str, depends: bool) -> None:
        needed[name] = needed.get(name, False) or depends

    for end in ends:
        need(end, end in wanted)
    nodes: list[str] = []
    bypassed: dict[str, str] = {}
    for name in reversed(above):
        if name not in needed:
            continue
        way = ways[name].dependent if needed[name] else ways[name].free
        if way.instead is not None:
            bypassed[name] = way.instead
            need(way.instead, needed[name])
            continue
        nodes.append(name)
        for source in flow.predecessors(name):
            need(source, needed[name] and source == way.through)
    return nodes[::-1], bypassed


def _used(
    flow: "nx.DiGraph[str]",
    nodes: Sequence[str],
    bypassed: Mapping[str, str],
    ends: Sequence[str],
    origins: Collection[str],
) -> set[str]:
    """The values that get a gradient from the ends, on a route."""
    found: set[str] = set()
    waiting = list(ends)
    run = set(nodes)
    while waiting:
        name = waiting.pop()
        if name in found or name not in origins:
            continue
        found.add(name)
        waiting += [bypassed[name]] if name in bypassed else flow.predecessors(name) if name in run else []
    return found
