"""The differences between two graphs, such as the changes of a rewrite: lines before and after."""

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text
from torch import fx, nn

from dni_fx.arguments import check_arguments
from dni_fx.capture import capture_by_fx
from dni_fx.model import Inputs
from dni_fx.ops import specialised
from dni_fx.plans import Plan
from dni_fx.report.graph_lines import Kind, Line, lines_of, lines_of_graph, variable
from dni_fx.report.summary import summary_table
from dni_fx.report.tables import Hanging, hanging
from dni_fx.runtime import DecoupledModule, plain, rewritten

__all__ = ["GraphDiff", "compare_lines", "diff"]

_SIGN: dict[Kind, str] = {"added": "+", "removed": "-", "moved": ">", "same": " ", "folded": " "}
_KIND: dict[str, Kind] = {" ": "same", "+": "added", "-": "removed", ">": "moved"}
_STYLE: dict[Kind, str] = {"same": "", "added": "green", "removed": "red", "moved": "yellow", "folded": "dim"}
_PLACE_STYLE = "bold cyan"

# The first lines of the diff of a net by the front end `modules`.
RECORD = (
    "A record of one training step, no code: the calls of submodules, in the order in which they returned.",
    "The model itself runs; forward hooks cut the outputs of these calls off.",
)

_LEAST = 20  # characters for the text of a line, before its source takes a line of its own


@dataclass(frozen=True)
class GraphDiff:
    """The lines of both graphs, in order. Rich prints it as one column.

    Attributes:
        plan: The plan of the second graph, which says what each cut adds; None: there is none.
    """

    lines: tuple[Line, ...]
    plan: Plan | None = None

    @classmethod
    def from_text(cls, text: str, plan: Plan | None = None) -> "GraphDiff":
        """Read what `to_text` wrote; older versions wrote no sources.

        Raises:
            ValueError: If it is no such text.
        """
        lines, place = [], ""
        if not text.strip():
            raise ValueError("it is empty")
        for number, line in enumerate(text.splitlines(), 1):
            if line and (line[0] not in {*_KIND, "="} or line[1:2] not in ("", " ")):
                raise ValueError(f"line {number} begins with none of {', '.join(map(repr, [*_KIND, '=']))}")
            if line.startswith("= "):
                place = line[2:].rstrip("-").rstrip()
            else:
                code, _, source = line[2:].rpartition("  # ")
                has_source = bool(code) and re.fullmatch(r".+:\d+", source) is not None
                kind = _KIND.get(line[:1], "same")
                lines.append(Line(kind, code if has_source else line[2:], place, source if has_source else ""))
        return cls(tuple(lines), plan)

    @property
    def counts(self) -> dict[Kind, int]:
        """The number of lines of each kind that there is."""
        found = Counter(line.kind for line in self.lines if line.text not in RECORD)
        return {kind: found[kind] for kind in _SIGN if found[kind]}

    @property
    def changed(self) -> bool:
        """Whether any line was added, removed or moved."""
        return any(line.kind in ("added", "removed", "moved") for line in self.lines)

    @property
    def after(self) -> tuple[Line, ...]:
        """The lines of the second graph."""
        kept = (line for line in self.lines if line.kind != "removed" and line.text not in RECORD)
        return tuple(replace(line, kind="same") for line in kept)

    def folded(self, context: int = 3) -> "GraphDiff":
        """The changes alone, each with so many lines before and after it. A line stands for each run of other lines."""
        changed = [k for k, line in enumerate(self.lines) if line.kind != "same"]
        shown = {k for change in changed for k in range(change - context, change + context + 1)}
        lines: list[Line] = []
        numbered = enumerate(self.lines)
        for (is_shown, place), run in groupby(numbered, lambda one: (self._stays(one, shown), one[1].place)):
            found = [line for _, line in run]
            if not is_shown and len(found) > 1:
                of = f" of {place}" if place else ""
                found = [Line("folded", f"... {len(found)} lines{of}", place)]
            lines += found
        return replace(self, lines=tuple(lines))

    @staticmethod
    def _stays(numbered: tuple[int, Line], shown: set[int]) -> bool:
        return numbered[0] in shown or numbered[1].text in RECORD

    def to_text(self) -> str:
        """Plain text. `+`: added, `-`: removed, `>`: moved here, `=`: a segment or a cut begins."""
        out = []
        for place, line in self._with_places():
            if place:
                out.append(_heading(place))
            source = f"  # {line.source}" if line.source else ""
            out.append(f"{_SIGN[line.kind]} {line.text}{source}")
        return "\n".join(out) + "\n"

    def side_by_side(self, before: str = "before", after: str = "after") -> RenderableType:
        """Both graphs in two columns, as wide as the console; long lines are wrapped.

        Args:
            before: The title of the first column.
            after: The title of the second column.
        """
        table = Table(box=None, show_header=True, pad_edge=False, padding=(0, 1, 0, 0), expand=True)
        for title in (before, after):
            table.add_column("", width=1)
            table.add_column(Text(title), ratio=1, overflow="fold")
        if any(line.source for line in self.lines):
            table.add_column("", overflow="fold", style="dim", justify="right", max_width=22)
        notes = [Text(line.text) for line in self.lines if line.text in RECORD]
        last = ""
        for left, right in self._pairs():
            line = right or left
            assert line is not None
            if line.place not in ("", last):
                last = line.place
                table.add_row(*[Text(part, _PLACE_STYLE) for part in ("=", last, "=", last)])
            cells = [cell for side in (left, right) for cell in _cells(side)]
            table.add_row(*cells, *([Text(line.source)] if len(table.columns) > 4 else []))
        return Group(*notes, table)

    def summary(self) -> RenderableType:
        """A table: the numbers of lines by segment and cut, and what each cut adds."""
        return summary_table(self.lines, self.plan)

    def _with_places(self) -> Iterator[tuple[str, Line]]:
        """Each line, with its place if the line before it has another one."""
        last = ""
        for line in self.lines:
            yield line.place if line.place != last else "", line
            last = line.place or last

    def _pairs(self) -> Iterator[tuple[Line | None, Line | None]]:
        """The rows of two columns: the old and the new value of a variable stand in one row."""
        removed: Line | None = None
        for line in self.lines:
            if line.text in RECORD:
                continue
            is_pair = removed is not None and line.kind == "added" and variable(line.text) == variable(removed.text)
            if removed is not None and not is_pair:
                yield removed, None
            if line.kind != "removed":
                yield removed if is_pair else None if line.kind in ("added", "moved") else line, line
            removed = line if line.kind == "removed" else None
        if removed is not None:
            yield removed, None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not console.is_terminal:
            yield Text(self.to_text(), end="")
            return
        for place, line in self._with_places():
            if place:
                yield Text(_heading(place, options.max_width), _PLACE_STYLE)
            yield from _fitted(line, console, options.max_width)


def _heading(place: str, width: int = 63) -> str:
    return f"= {place} {'-' * max(0, min(63, width) - len(place) - 3)}"


def _cells(line: Line | None) -> tuple[RenderableType, RenderableType]:
    """The sign and the text of a line, for two columns of a table."""
    if line is None:
        return Text(), Text()
    return Text(_SIGN[line.kind], _STYLE[line.kind]), Hanging(line.text, _STYLE[line.kind])


def _fitted(line: Line, console: Console, width: int) -> Iterator[Text]:
    """A line with its source at the right end; a long one goes on in the next lines, which are indented."""
    beside = width - 2 - (len(line.source) + 2 if line.source else 0)
    room = beside if beside >= _LEAST else max(2, width - 2)
    first, *rest = hanging(line.text, console, room, max(2, width - 2))
    text = Text(f"{_SIGN[line.kind]} {first}", _STYLE[line.kind])
    if line.source and room == beside:
        text = Text.assemble(text, " " * (width - text.cell_len - len(line.source)), (line.source, "dim"))
    yield text
    for part in rest:
        yield Text(f"{_SIGN[line.kind]} {part}", _STYLE[line.kind])
    if room != beside:
        yield Text(line.source, "dim", justify="right")


def compare_lines(before: Sequence[Line], after: Sequence[Line], plan: Plan | None = None) -> GraphDiff:
    """Compare the lines of two graphs; the old and the new value of a variable stand side by side.

    Args:
        plan: The plan of the graph that has places.
    """
    old, new = [line.text for line in before], [line.text for line in after]
    gone, come = set(old) - set(new), set(new) - set(old)
    has_places = any(line.place for line in after)
    lines: list[Line] = []
    place = ""

    def remove(line: Line) -> None:
        nonlocal place
        place = place if has_places else line.place or place
        lines.append(replace(line, kind="removed", place=place))

    for tag, i1, i2, j1, j2 in difflib.SequenceMatcher(a=old, b=new, autojunk=False).get_opcodes():
        if tag == "equal":
            for was, line in zip(before[i1:i2], after[j1:j2], strict=True):
                place = line.place or was.place
                lines.append(replace(line, kind="same", place=place, source=line.source or was.source))
            continue
        removed = [line for line in before[i1:i2] if line.text in gone]
        kept = {variable(text) for text in new[j1:j2]}
        replaced = {variable(line.text): line for line in removed if variable(line.text) in kept}
        if j1 < j2:
            place = place or after[j1].place
        for line in removed:
            if replaced.get(variable(line.text)) is not line:
                remove(line)
        for line in after[j1:j2]:
            place = line.place or place
            was_there = replaced.pop(variable(line.text), None)
            if was_there is not None:
                remove(was_there)
            source = line.source or (was_there.source if was_there is not None else "")
            kind: Kind = "added" if line.text in come else "moved"
            lines.append(replace(line, kind=kind, place=place, source=source))
    return GraphDiff(tuple(lines), plan)


def diff(model_or_graph: nn.Module | fx.Graph, net: DecoupledModule) -> GraphDiff:
    """Compare a model with its rewritten form. By the front end `modules`: show the calls of submodules and the cuts.

    The result prints itself with rich. `to_text()` is plain text, `folded(3)` has the changes alone, each with three
    lines around it; `side_by_side()` and `summary()` are for `rich.print`.

    Args:
        model_or_graph: The plain model, or its graph; or another rewritten net.
        net: The net that `dni_fx.transform` returned.

    Raises:
        DniFxError: If `net` was not made by dni-fx.
        CaptureError: If the model cannot be traced.
    """
    net = rewritten(net)
    check_arguments({"model_or_graph": model_or_graph})
    after = lines_of(net)
    if not net.dni_runs_graph:
        return GraphDiff((*(Line("same", text, "") for text in RECORD), *after), net.dni.plan)
    if isinstance(model_or_graph, fx.Graph):
        before = model_or_graph
    elif isinstance(model_or_graph, fx.GraphModule):
        before = model_or_graph.graph
    elif net.dni.plan.frontend == "fx":
        before = capture_by_fx(model_or_graph, _stand_ins(net)).graph
    else:  # a new capture needs real inputs: compare with the graph before the rewrite
        before = plain(net).graph
    return compare_lines(lines_of_graph(before), after, net.dni.plan)


def _stand_ins(net: DecoupledModule) -> Inputs:
    """Empty tensors for the arguments of `net`: a symbolic trace needs no values."""
    fixed = {node.args[1] for node in net.graph.nodes if node.target is specialised}
    arguments = [n for n in net.graph.nodes if n.op == "placeholder" and n.target != "dni_context" and n not in fixed]
    return Inputs((), {str(node.target): torch.empty(0) for node in arguments})
