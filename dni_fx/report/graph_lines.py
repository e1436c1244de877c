"""The lines of a graph as people read them: code, or calls of submodules; each with its place and its source."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import fx

from dni_fx.capture import line_of_node
from dni_fx.graph import has_record, record_of
from dni_fx.plans import Plan
from dni_fx.report.calls import record_lines
from dni_fx.runtime import DecoupledModule

__all__ = ["Kind", "Line", "code_lines", "lines_of", "lines_of_graph", "variable"]

Kind = Literal["same", "added", "removed", "moved", "folded"]

_IN_TIME = re.compile(r"self\.dni\.time\d|ops\.(enter|leaves?)\(|= (enter|leaves?)(_\d+)?\[")


@dataclass(frozen=True)
class Line:
    """One line of code, or of a record of calls.

    Attributes:
        kind: What a rewrite did to the line; "folded": the line stands for several lines that are left out.
        text: The code or the call.
        place: "segment 0", "cut 0", "cut in time", or empty.
        source: The line of the model's code that made this line, as in net.py:12; empty: unknown.
    """

    kind: Kind
    text: str
    place: str
    source: str = ""


def lines_of(module: DecoupledModule) -> list[Line]:
    """The lines of a captured or rewritten module: its code, or by the front end `modules` the calls of submodules."""
    if module.dni_runs_graph:
        return lines_of_graph(module.graph, module.dni.plan if hasattr(module, "dni") else None)
    return [
        Line("added" if line.added else "same", line.text, line.place, line.source) for line in record_lines(module)
    ]


def lines_of_graph(graph: fx.Graph, plan: Plan | None = None) -> list[Line]:
    """The code of a graph; without a plan, the lines have no place."""
    texts = [line.removeprefix("    ") for line in code_lines(graph)]
    sources = {node.name: line_of_node(node)[0] for node in graph.nodes}
    places = [""] * len(texts) if plan is None else _places(texts, graph, plan)
    return [
        Line("same", text, place, sources.get(variable(text), "")) for text, place in zip(texts, places, strict=True)
    ]


def code_lines(graph: fx.Graph) -> list[str]:
    """The Python code of a graph, without the statements that free memory."""
    lines = graph.python_code("self").src.splitlines()
    clean = [re.sub(r";  [\w, =]+ = None$", "", line.rstrip()) for line in lines]
    named = [re.sub(r"\bdni_fx_ops_(\w+)", r"dni_fx.ops.\1", line) for line in clean]
    return [line for line in named if line.strip() and not line.startswith("torch.fx._symbolic_trace.wrap(")]


def variable(line: str) -> str:
    """The variable that a line of code assigns to; in a record of calls, the submodule."""
    found = re.match(r"call [\w.]+(?= \()|[^ :]*", line)
    assert found is not None  # which may be empty
    return found[0]


def _places(lines: Iterable[str], graph: fx.Graph, plan: Plan) -> list[str]:
    """The place of each line: the segment of its node, or the cut above the last such segment.

    Records know better where a piece of a segment or a unit begins; a loaded net has none.
    """
    records = {node.name: record_of(node) for node in graph.nodes if has_record(node)}
    segment_of = {node: k for k, segment in enumerate(plan.segments) for node in segment.nodes}
    places, segment = [], 0
    for line in lines:
        name = variable(line)
        if name in segment_of:
            segment = segment_of[name]
            places.append(f"segment {segment}")
        elif _IN_TIME.search(line):
            places.append("cut in time")
        elif name in records and records[name].role == "piece":
            places.append(f"segment {records[name].segment}")
        elif name in records and records[name].cut is not None:
            places.append(f"cut {records[name].cut}")
        elif line.startswith("def "):
            places.append("")
        elif line.startswith("return"):
            places.append(f"segment {len(plan.segments) - 1}")
        else:
            places.append(f"cut {segment}")
    return places
