"""Helpers for passes that add or read boundaries: the value behind each result, its name, its users."""

import operator
import re
from typing import Any

from torch.fx import Graph, Node

from dni_fx import ops
from dni_fx.graph import record_of

__all__ = [
    "BOUNDARIES",
    "borrowed_name",
    "end_of_segment",
    "next_name",
    "origin",
    "passed_on",
    "rewire",
    "synthesizers_by_cut",
    "value_at",
    "written_above",
    "written_by_segment",
]

BOUNDARIES = (ops.decouple, ops.decouple_unit, ops.inject)


def passed_on(call: Node) -> tuple[Node, ...]:
    """The values that a boundary, or an end of a cut in time, passes on, in the order of its results; else none."""
    args: Any = call.args
    if call.target is ops.decouple_unit:
        return (args[2],)
    if call.target in (*BOUNDARIES, ops.begin_unit, ops.enter):
        return tuple(args[0])
    return (*args[0], *args[1]) if call.target is ops.leave else ()


def origin(value: Node) -> Node:
    """The value before all cuts and copies."""
    while True:
        args: Any = value.args
        if value.target is ops.writable:
            value = args[0]
        elif value.target is operator.getitem and isinstance(args[0], Node) and passed_on(args[0]):
            value = passed_on(args[0])[args[1]]
        else:
            return value


def synthesizers_by_cut(graph: Graph) -> dict[int, list[Node]]:
    """The synthesizer calls of each cut, cuts in order."""
    found: dict[int, list[Node]] = {}
    for node in graph.nodes:
        record = record_of(node)
        if record.role == "synthesizer" and record.cut is not None:
            found.setdefault(record.cut, []).append(node)
    return dict(sorted(found.items()))


def written_by_segment(graph: Graph) -> dict[int, frozenset[int]]:
    """The storages that the nodes of each segment write to, for the segments that write."""
    written: dict[int, frozenset[int]] = {}
    for node in graph.nodes:
        record = record_of(node)
        if record.segment is not None and record.mutates:
            written[record.segment] = written.get(record.segment, frozenset()) | record.mutates
    return written


def written_above(boundary: Node) -> frozenset[int]:
    """The storages that the segment above a boundary writes to, after the boundary."""
    cut = record_of(boundary).cut
    assert cut is not None
    after = list(boundary.graph.nodes)
    after = after[after.index(boundary) :]
    return frozenset[int]().union(*(record_of(n).mutates for n in after if record_of(n).segment == cut + 1))


def end_of_segment(graph: Graph, segment: int) -> Node:
    """The last node of a segment, with what the passes so far have added."""
    nodes: list[Node] = [node for node in graph.nodes if record_of(node).segment == segment]
    return nodes[-1]


def value_at(value: Node, place: Node) -> Node:
    """A captured value as a node after `place` has to use the value: after all boundaries up to this place."""
    nodes: list[Node] = list(value.graph.nodes)
    return [node for node in nodes[: nodes.index(place) + 1] if origin(node) is value][-1]


def borrowed_name(path: str) -> str:
    """The name of a node that reads a submodule, parameter or buffer of the model for an exit or a piece."""
    return f"borrowed_{path.replace('.', '_')}"


def next_name(value: Node) -> str:
    """The name of a value above a cut, however many cuts it has crossed."""
    return re.sub(r"_next(_copy)?(_\d+)?$", "", value.name) + "_next"


def rewire(value: Node, following: Node, cut: int) -> None:
    """Replace `value` by `following` in every user above the cut and after `following`."""
    nodes = list(value.graph.nodes)
    after = set(nodes[nodes.index(following) + 1 :])
    for user in [user for user in value.users if user in after]:
        segment = record_of(user).segment
        if segment is not None and segment > cut:
            user.replace_input_with(value, following)
