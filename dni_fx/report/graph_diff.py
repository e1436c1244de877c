"""The changes of a rewrite: lines of the graph's code, before and after."""

import difflib
import re
from dataclasses import dataclass
from typing import Literal

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text
from torch import fx, nn

from dni_fx.arguments import check_arguments
from dni_fx.capture import capture_by_fx
from dni_fx.model import Inputs
from dni_fx.ops import specialised
from dni_fx.plans import Plan
from dni_fx.report.calls import record_lines
from dni_fx.runtime import DecoupledModule, plain, rewritten

__all__ = ["GraphDiff", "Line", "code_lines", "diff", "paint"]

Kind = Literal["same", "added", "removed", "moved"]

_SIGN: dict[Kind, str] = {"same": " ", "added": "+", "removed": "-", "moved": ">"}

# The first lines of the diff of a net by the front end `modules`.
RECORD = (
    "A record of one training step, no code: the calls of submodules, in the order in which they returned.",
    "The model itself runs; forward hooks cut the outputs of these calls off.",
)

_STYLE = {"+": "green", "-": "red", ">": "yellow", "=": "bold cyan", " ": ""}


@dataclass(frozen=True)
class Line:
    """One line of code, and its place: "segment 0", "cut 0", "cut in time" or empty."""

    kind: Kind
    text: str
    place: str


@dataclass(frozen=True)
class GraphDiff:
    """The lines of both graphs, in order. Rich can print it."""

    lines: tuple[Line, ...]

    def to_text(self) -> str:
        """Plain text. `+`: added, `-`: removed, `>`: moved here, `=`: a segment or a cut begins."""
        out, place = [], ""
        for line in self.lines:
            if line.place != place and line.place:
                out.append(f"= {line.place} {'-' * max(0, 60 - len(line.place))}")
                place = line.place
            out.append(f"{_SIGN[line.kind]} {line.text}")
        return "\n".join(out) + "\n"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield paint(self.to_text())


def paint(text: str) -> Text:
    """Colour the text of a diff."""
    painted = Text()
    for line in text.splitlines():
        painted.append(line + "\n", style=_STYLE.get(line[:1], ""))
    return painted


def diff(model_or_graph: nn.Module | fx.Graph, net: DecoupledModule) -> GraphDiff:
    """Compare a model with its rewritten form. By the front end `modules`: show the calls of submodules and the cuts.

    Args:
        model_or_graph: The plain model, or its graph.
        net: The net that `dni_fx.transform` returned.

    Raises:
        DniFxError: If `net` was not made by dni-fx.
        CaptureError: If the model cannot be traced.
    """
    net = rewritten(net)
    check_arguments({"model_or_graph": model_or_graph})
    if not net.dni_runs_graph:
        return _diff_of_record(net)
    if isinstance(model_or_graph, fx.Graph):
        before = model_or_graph
    elif isinstance(model_or_graph, fx.GraphModule):
        before = model_or_graph.graph
    elif net.dni.plan.frontend == "fx":
        before = capture_by_fx(model_or_graph, _stand_ins(net)).graph
    else:  # a new capture needs real inputs: compare with the graph before the rewrite
        before = plain(net).graph
    old, new = ([line.removeprefix("    ") for line in code_lines(graph)] for graph in (before, net.graph))
    return _compare(old, new, net.dni.plan)


def _diff_of_record(net: DecoupledModule) -> GraphDiff:
    """The calls of a net without a graph that runs, and its cuts."""
    lines = [Line("same", text, "") for text in RECORD]
    lines += [Line("added" if line.added else "same", line.text, line.place) for line in record_lines(net)]
    return GraphDiff(tuple(lines))


def _stand_ins(net: DecoupledModule) -> Inputs:
    """Empty tensors for the arguments of `net`: a symbolic trace needs no values."""
    fixed = {node.args[1] for node in net.graph.nodes if node.target is specialised}
    arguments = [n for n in net.graph.nodes if n.op == "placeholder" and n.target != "dni_context" and n not in fixed]
    return Inputs((), {str(node.target): torch.empty(0) for node in arguments})


def code_lines(graph: fx.Graph) -> list[str]:
    """The Python code of a graph, without the statements that free memory."""
    lines = graph.python_code("self").src.splitlines()
    clean = [re.sub(r";  [\w, =]+ = None$", "", line.rstrip()) for line in lines]
    named = [re.sub(r"\bdni_fx_ops_(\w+)", r"dni_fx.ops.\1", line) for line in clean]
    return [line for line in named if line.strip() and not line.startswith("torch.fx._symbolic_trace.wrap(")]


def _compare(before: list[str], after: list[str], plan: Plan) -> GraphDiff:
    """Compare lines of code; the old and the new value of a variable stand side by side."""
    places = _places(after, plan)
    gone, come = set(before) - set(after), set(after) - set(before)
    lines: list[Line] = []
    place = ""
    for tag, i1, i2, j1, j2 in difflib.SequenceMatcher(a=before, b=after, autojunk=False).get_opcodes():
        replaced = {_variable(text): text for text in before[i1:i2] if text in gone} if tag != "equal" else {}
        new = {_variable(text) for text in after[j1:j2]}
        lines += [Line("removed", text, place) for name, text in replaced.items() if name not in new]
        for text, place in zip(after[j1:j2], places[j1:j2], strict=True):
            if _variable(text) in replaced:
                lines.append(Line("removed", replaced[_variable(text)], place))
            kind: Kind = "same" if tag == "equal" else "added" if text in come else "moved"
            lines.append(Line(kind, text, place))
    return GraphDiff(tuple(lines))


_IN_TIME = re.compile(r"self\.dni\.time\d|ops\.(enter|leaves?)\(|= (enter|leaves?)(_\d+)?\[")


def _variable(line: str) -> str:
    """The variable that a line assigns to."""
    return re.split(r"[ :]", line, maxsplit=1)[0]


def _places(lines: list[str], plan: Plan) -> list[str]:
    """The place of each line: the segment of its node, or the cut above the last such segment."""
    segment_of = {node: k for k, segment in enumerate(plan.segments) for node in segment.nodes}
    places, segment = [], 0
    for line in lines:
        name = _variable(line)
        if name in segment_of:
            segment = segment_of[name]
            places.append(f"segment {segment}")
        elif _IN_TIME.search(line):
            places.append("cut in time")
        elif line.startswith("def "):
            places.append("")
        elif line.startswith("return"):
            places.append(f"segment {len(plan.segments) - 1}")
        else:
            places.append(f"cut {segment}")
    return places
