"""The differences between two plans: cuts, segments, synthesizers, settings, forecast, and any other field."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.table import Table

from dni_fx.plans import CrossingTensor, Forecast, Plan, Rewrite, crossings, time_name
from dni_fx.report.exits import exit_text
from dni_fx.report.tables import add_row, plain_table
from dni_fx.units import bytes_text, quantity

__all__ = ["plan_changes", "plan_diff_table"]

_ABSENT = "-"

Row = tuple[str, str]  # the field of the plan, and the name that people read
Change = tuple[str, str, str]  # what differs, and its text in each plan


def plan_diff_table(changes: list[Change], before: str, after: str) -> Table:
    """A row for each difference.

    Args:
        before: The name of the first plan.
        after: The name of the second plan.
    """
    table = plain_table("", ("", before, after))
    for change in changes:
        add_row(table, *change)
    return table


def plan_changes(before: Plan, after: Plan) -> list[Change]:
    """What differs between two plans, in the order in which people read a plan; empty: the plans are equal."""
    both = before.rewrite is not None and after.rewrite is not None
    old, new = (dict(_rows(plan, with_settings=both)) for plan in (before, after))
    differing = [row for row in dict.fromkeys([*old, *new]) if old.get(row) != new.get(row)]
    found = [(name, old.get((field, name), _ABSENT), new.get((field, name), _ABSENT)) for field, name in differing]
    values = asdict(before), asdict(after)
    with_rows = {field for field, _ in differing}
    rest = [name for name in values[0] if name not in with_rows and name != "verdict"]
    for name in rest:
        found += _rest(name, values[0][name], values[1][name])
    # Other cuts were weighed with other numbers: these alone are no news.
    return found or list(_rest("verdict", values[0]["verdict"], values[1]["verdict"]))


def _rows(plan: Plan, *, with_settings: bool) -> Iterator[tuple[Row, str]]:
    """The parts of a plan as people read them, each with its text."""
    yield ("model", "model"), plan.model
    yield ("frontend", "front end"), plan.frontend
    yield ("fingerprint", "graph"), plan.fingerprint[:12]
    yield ("inputs", "inputs"), "\n".join(plan.inputs)
    yield ("segments", "segments"), str(len(plan.segments))
    for k, cut in enumerate(plan.cuts):
        yield ("cuts", f"cut {k}"), "\n".join([f"after {cut.after}", *map(_tensor, cut.tensors)])
        if cut.exit is not None:
            yield ("cuts", f"exit at cut {k}"), exit_text(cut.exit)
    for k, segment in enumerate(plan.segments):
        recomputes = ", computes activations again" if segment.recomputed else ""
        text = f"{len(segment.nodes)} nodes, peak {bytes_text(segment.peak_bytes)}{recomputes}"
        yield ("segments", f"segment {k}"), text
    for index, state in enumerate(plan.states):
        shapes = ", ".join(f"{t.input} {'x'.join(map(str, t.shape))}" for t in state.tensors)
        yield ("states", time_name(index)), f"{shapes}, cut in time"
    yield ("rewrite", "rewritten"), "no" if plan.rewrite is None else "yes"
    if plan.rewrite is not None and with_settings:
        yield from _settings(plan, plan.rewrite)
    if plan.forecast is not None:
        yield from _predictions(plan.forecast)
    yield ("why", "why"), plan.why


def _tensor(tensor: CrossingTensor) -> str:
    return f"{tensor.node} {'x'.join(map(str, tensor.shape))} {tensor.dtype}"


def _settings(plan: Plan, rewrite: Rewrite) -> Iterator[tuple[Row, str]]:
    """The synthesizers, and how the cuts are rewritten and the synthesizers trained."""
    for name, _ in crossings(plan):
        yield ("rewrite", f"synthesizer {name}"), rewrite.synthesizers.get(name, _ABSENT)
    values = {**asdict(rewrite), **asdict(rewrite.training)}
    for name in (name for name in values if name not in ("synthesizers", "training", "paths")):
        is_own = name == "loss" and values[name] == ""
        yield ("rewrite", name.replace("_", " ")), "a function of your own" if is_own else str(values[name])


def _predictions(forecast: Forecast) -> Iterator[tuple[Row, str]]:
    """What is predicted for the cuts and for backprop."""
    for name, outlook in (("cut", forecast.cut), ("backprop", forecast.backprop)):
        yield ("forecast", f"{name}: peak memory"), bytes_text(outlook.peak_bytes)
        yield ("forecast", f"{name}: step on one device"), quantity(outlook.step, forecast.unit)
        yield ("forecast", f"{name}: step with a device a segment"), quantity(outlook.slowest, forecast.unit)


def _rest(name: str, before: Any, after: Any) -> Iterator[Change]:
    """A field without a row: the first value in it that differs, and the number of others."""
    old, new = (dict(_leaves(name, value)) for value in (before, after))
    paths = [path for path in dict.fromkeys([*old, *new]) if old.get(path) != new.get(path)]
    if paths:
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        yield paths[0] + more, str(old.get(paths[0], _ABSENT)), str(new.get(paths[0], _ABSENT))


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The values inside of nested containers, by path."""
    if isinstance(value, dict | list | tuple):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(f"{path}.{key}", inner)
    else:
        yield path, value
