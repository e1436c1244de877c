"""The summary of a graph diff: lines by segment and cut, and what each cut adds."""

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.table import Table

from dni_fx.plans import Plan, crossing_name, time_name
from dni_fx.report.graph_lines import Line
from dni_fx.report.tables import add_row, plain_table

__all__ = ["summary_table"]

_COUNTED = ("added", "removed", "moved", "same")


def summary_table(lines: Sequence[Line], plan: Plan | None) -> Table:
    """A row for each segment and cut; without places, one row.

    Args:
        plan: The plan whose cuts the lines hold; None: no column says what the cuts add.
    """
    adds = {} if plan is None else dict(_additions(plan))
    counts: dict[str, Counter[str]] = {line.place: Counter() for line in lines}
    for line in lines:
        counts[line.place][line.kind] += 1
    table = plain_table("", ["", *_COUNTED, *(["the cut adds"] if adds else [])], right=_COUNTED, footer=True)
    for place, count in counts.items():
        if place or any(count[kind] for kind in _COUNTED[:3]) or len(counts) == 1:
            texts = adds.get(place, [])
            add_row(
                table,
                place or ("graph" if len(counts) == 1 else "arguments"),
                *_numbers(count),
                *(["\n".join(texts)] if adds else []),
            )
    total = sum(counts.values(), Counter())
    for column, number in zip(table.columns[1:], _numbers(total), strict=False):
        column.footer = number
    return table


def _numbers(count: Counter[str]) -> list[str]:
    return [str(count[kind]) if count[kind] else "" for kind in _COUNTED]


def _additions(plan: Plan) -> Iterator[tuple[str, list[str]]]:
    """What each cut adds: its tensors, each with its shape and what predicts its gradient."""
    names = {} if plan.rewrite is None else plan.rewrite.synthesizers
    for k, cut in enumerate(plan.cuts):
        shapes = {t.node: "x".join(map(str, t.shape)) for t in cut.predicted}
        known = [names.get(crossing_name(k, node), "" if cut.exit is None else "exit") for node in shapes]
        texts = [f"{node} {shape}" for node, shape in shapes.items()]
        yield f"cut {k}", [f"{text}: {name}" if name else text for text, name in zip(texts, known, strict=True)]
    in_time = []
    for index, state in enumerate(plan.states):
        tensors = ", ".join(f"{t.input} {'x'.join(map(str, t.shape))}" for t in state.tensors)
        name = names.get(time_name(index), "")
        in_time.append(f"{tensors}: {name}" if name else tensors)
    if in_time:
        yield "cut in time", in_time
