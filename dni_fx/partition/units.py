"""The units of an exit that the segment above the cut starts with: they can run once, for both."""

from collections.abc import Mapping

import networkx as nx

from dni_fx.partition.exits import Route
from dni_fx.partition.flow_node import flow_node
from dni_fx.partition.positions import Position

__all__ = ["units_above"]


def units_above(
    flow: "nx.DiGraph[str]", position: Position, route: Route, crossing_alone: Mapping[str, Position]
) -> tuple[str, ...]:
    """The nodes of the next units, if the exit and the segment above begin with these; the last one has their value.

    So it is where all that carries gradient from the cut goes through this value, and no unit writes to memory from
    below the cut. Else none.

    Args:
        crossing_alone: The legal cuts that one tensor crosses, by this tensor.
    """
    order = {name: place for place, name in enumerate(flow)}
    end = max(route.kept, key=order.__getitem__, default=None)
    if end is None or end not in crossing_alone or order[end] > crossing_alone[end].index:
        return ()
    between = [name for name in flow if position.index < order[name] <= order[end]]
    run = set(route.nodes)
    if any(flow_node(flow, name).carries_gradient and name not in run for name in between):
        return ()
    below = {s for name in flow if order[name] <= position.index for s in flow_node(flow, name).storages}
    if any(flow_node(flow, name).mutates & below for name in between):
        return ()
    inside = {*between, *position.crossing} - {end}
    rest = [name for name in route.nodes if order[name] > order[end]]
    used = {source for name in rest for source in flow.predecessors(name)} | set(route.bypassed.values())
    if any(flow_node(flow, name).carries_gradient for name in used & inside):
        return ()
    # The exit runs at the end of the units: values that the segment above computes later are not there yet.
    late = [n for n in used if order[end] < order[n] and n not in run and n not in route.bypassed]
    return () if late else tuple(name for name in between if name in run)
