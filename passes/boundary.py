"""What the passes that put in boundaries share."""

import re

from torch.fx import Graph, Node

from dni_fx.graph import record_of

__all__ = ["next_name", "rewire", "synthesizers_by_cut"]


def synthesizers_by_cut(graph: Graph) -> dict[int, list[Node]]:
    """The synthesizer calls of each cut, cuts in order."""
    found: dict[int, list[Node]] = {}
    for node in graph.nodes:
        record = record_of(node)
        if record.role == "synthesizer" and record.cut is not None:
            found.setdefault(record.cut, []).append(node)
    return dict(sorted(found.items()))


def next_name(value: Node) -> str:
    """Name of a value on the far side of a cut, however many cuts it has crossed."""
    return re.sub(r"_next(_copy)?(_\d+)?$", "", value.name) + "_next"


def rewire(value: Node, following: Node, cut: int) -> None:
    """Let everything above the cut use `following` in the place of `value`."""
    for user in list(value.users):
        segment = record_of(user).segment
        if segment is not None and segment > cut:
            user.replace_input_with(value, following)
