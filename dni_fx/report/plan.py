"""A plan as tables for people."""

from collections.abc import Callable, Sequence
from functools import partial

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dni_fx.plans import (
    CrossingTensor,
    Forecast,
    Outlook,
    Plan,
    SegmentPlan,
    Verdict,
    Weighed,
    crossing_name,
    time_name,
)
from dni_fx.report.exits import exit_text
from dni_fx.report.tables import Fitted, Proportion, abridged, add_row, plain_table
from dni_fx.report.verdict import allocated, plan_verdict
from dni_fx.units import bytes_text, quantity

__all__ = ["plan_table"]

_BAR = 16  # characters


def plan_table(plan: Plan, *, whole: bool = False) -> RenderableType:
    """The verdict on a plan, its origin, segments, crossing tensors and forecast, and the plans that lost.

    Args:
        whole: Show all rows of long tables.
    """
    verdict = [Text(sentence) for sentence in plan_verdict(plan)]
    head = Text.assemble(
        (plan.model, "bold"),
        f"  front end {plan.frontend}, inputs {'; '.join(plan.inputs) or 'none'} ({plan.inputs_from})",
    )
    if plan.cuts or plan.states:  # else the verdict says why
        head.append(f"\ncuts: {plan.why}")
    for reason in plan.tried:
        head.append(f"\nnot by {reason}", "dim")
    for name, segments in plan.tied.items():
        head.append(f"\ntied: {name} is used in segments {', '.join(map(str, segments))}; its gradients add up")
    for index, state in enumerate(plan.states):
        shapes = ", ".join(f"{tensor.input} {'x'.join(map(str, tensor.shape))}" for tensor in state.tensors)
        head.append(f"\n{time_name(index)}: {shapes}, cut in time")
        if plan.rewrite is not None:
            head.append(f", synthesizer {plan.rewrite.synthesizers[time_name(index)]}")
    for k, cut in enumerate(plan.cuts):
        if cut.exit is not None:
            head.append(f"\nexit at cut {k}, after {cut.after}: {exit_text(cut.exit)}")
    if plan.rewrite is not None:
        rewrite = plan.rewrite
        head.append(f"\nunlock: {rewrite.unlock}")
        if rewrite.mix:
            head.append(f", mix {rewrite.mix}")
        if rewrite.classes:
            head.append(f", synthesizers conditioned on {rewrite.classes} labels: net(..., dni_context=labels)")
        if rewrite.loss is not None:
            head.append(f", loss {rewrite.loss or 'of your own'}")
        if plan.cuts and plan.takes_context and not rewrite.size:
            head.append(": while training, net(..., dni_context=target)")
        if rewrite.context_size:
            head.append(f", synthesizers conditioned on a context of {rewrite.context_size}")
    tables: list[RenderableType] = [_segments(plan, whole), *([_cuts(plan, whole)] if plan.cuts else [])]
    if plan.forecast is not None:
        tables.append(_forecast(plan, plan.forecast))
        if plan.verdict is not None:
            tables.append(_weighed(plan.verdict, plan.forecast, whole))
    return Group(*verdict, *([Text()] if verdict else []), head, Text(), *tables)


def _segments(plan: Plan, whole: bool) -> Fitted:
    """A row for each segment, with its predicted peak as a bar; the footer has the sums."""
    unneeded = ["nodes", "params", "synth.", "backward", "forward"]  # the least needed first
    return Fitted([_segments_without(plan, unneeded[:count], whole) for count in range(len(unneeded) + 1)])


def _segments_without(plan: Plan, unneeded: Sequence[str], whole: bool) -> Table:
    """The table of segments without some columns."""
    unit = plan.forecast.unit if plan.forecast is not None else "FLOPs"
    recomputes = any(segment.recomputed for segment in plan.segments)
    sums = [name for name in _SUMS if name not in unneeded and (recomputes or name != "pieces")]
    title = f"segments; time in {unit}; peak: predicted memory that the step allocates"
    title += "; pieces: computed again" * recomputes
    table = plain_table(title, ["segment", *sums, "peak"], right=["segment", *_SUMS, "peak"], footer=True)
    table.add_column(min_width=_BAR, max_width=_BAR)
    largest = max(segment.peak_bytes for segment in plan.segments)

    def add(k: int, segment: SegmentPlan) -> None:
        bar = Proportion(segment.peak_bytes, largest) if largest else ""
        cells = [_sum([segment], name, unit) for name in sums]
        add_row(table, str(k), *cells, bytes_text(segment.peak_bytes), bar)

    abridged(table, plan.segments, add, whole=whole)
    for column, name in zip(table.columns[1:], sums, strict=False):
        column.footer = Text(_sum(plan.segments, name, unit))
    return table


_SUMS: dict[str, Callable[[SegmentPlan], float]] = {
    "nodes": lambda segment: len(segment.nodes),
    "params": lambda segment: segment.parameters,
    "forward": lambda segment: segment.forward,
    "backward": lambda segment: segment.backward,
    "synth.": lambda segment: segment.synthesizers,
    "pieces": lambda segment: len(segment.recomputed),
}


def _sum(segments: Sequence[SegmentPlan], name: str, unit: str) -> str:
    """The cell of a column for some segments, added up."""
    total = sum(_SUMS[name](segment) for segment in segments)
    if name in ("nodes", "pieces"):
        return str(total)
    return quantity(total, "" if name == "params" or unit == "FLOPs" else unit)


def _forecast(plan: Plan, forecast: Forecast) -> RenderableType:
    """The predictions beside those for backprop, and the place of the peak."""

    def time(value: float) -> str:
        return quantity(value, forecast.unit)

    exact = forecast.checkpoint
    names = ("backprop", "cut", "ratio", *(["checkpoint"] if exact is not None else []))
    table = plain_table("predicted, for unlock=backward and Adam", ("", *names), right=names)
    rows: list[tuple[str, Callable[[Outlook], float], Callable[[float], str]]] = [
        ("peak training memory", lambda o: o.peak_bytes, bytes_text),
        ("allocated by the step", partial(allocated, forecast), bytes_text),
        ("step on one device", lambda o: o.step, time),
        ("step with a device a segment", lambda o: o.slowest, time),
    ]
    for name, of, show in rows:
        before, after = of(forecast.backprop), of(forecast.cut)
        recomputed = [] if exact is None else ["" if "device a" in name else show(of(exact))]
        add_row(table, name, show(before), show(after), f"{after / before:.2f}" if before else "", *recomputed)
    worst = max(range(len(plan.segments)), key=lambda k: plan.segments[k].peak_bytes)
    segment = plan.segments[worst]
    way = "backward" if segment.peak_backward else "forward"
    where = f"in segment {worst}, going {way} through {segment.peak_at}"
    if forecast.optimizer_bytes > segment.peak_bytes:
        where = "where the optimizer steps, with all gradients and its temporaries"
    note = "" if forecast.saves_memory or not plan.cuts else "; the cuts save no memory"
    return Group(table, Text(f"the peak is {where}{note}\n"))


def _weighed(verdict: Verdict, forecast: Forecast, whole: bool) -> Table:
    """A row for the chosen plan, and for each plan that lost: its value, and the reason why it lost."""

    def show(value: float) -> str:
        return bytes_text(value) if verdict.objective == "memory" else quantity(value, forecast.unit)

    title = f"weighed: {verdict.objective}, and a charge for each synthesizer, more for lower ones"
    numbers = ("heaviest", "charges", "sum", "synth. share")
    table = plain_table(title, ("cuts after", *numbers, ""), right=numbers)

    def add(_number: int, plan: Weighed) -> None:
        cells = [show(plan.value - plan.charges), show(plan.charges), show(plan.value), f"{100 * plan.share:.2g} %"]
        add_row(table, ", ".join(plan.after), *cells, _lost(plan, verdict))

    abridged(table, verdict.weighed, add, whole=whole)
    return table


def _lost(plan: Weighed, verdict: Verdict) -> str:
    """Why a plan lost against the winner."""
    winner = verdict.weighed[0]
    if plan is winner:
        return "chosen"
    if plan.share > verdict.share * (1 + 1e-9):
        return f"synthesizers over {100 * verdict.share:.2g} % of a step"
    heavier = plan.value - plan.charges > winner.value - winner.charges
    return f"+{100 * (plan.value / winner.value - 1):.2g} %: {'heavier' if heavier else 'charged more'}"


def _cuts(plan: Plan, whole: bool) -> Table:
    """A row for each tensor that gets a synthetic gradient: it crosses a cut, or ends the units of an exit."""
    names = plan.rewrite.synthesizers if plan.rewrite else {}
    columns = ("cut", "tensor", "shape", "dtype", "bytes", *(["synthesizer"] if names else []))
    ends_units = any(cut.predicted != cut.tensors for cut in plan.cuts)
    title = "tensors that cross each cut"
    title += ", or end units that run once" * ends_units
    table = plain_table(title, columns, right=("cut", "bytes"))

    def add(_number: int, crossing: tuple[int, CrossingTensor]) -> None:
        k, tensor = crossing
        cells = [str(k), tensor.node, "x".join(map(str, tensor.shape)), tensor.dtype, bytes_text(tensor.bytes)]
        add_row(table, *cells, *([names[crossing_name(k, tensor.node)]] if names else []))

    abridged(table, [(k, tensor) for k, cut in enumerate(plan.cuts) for tensor in cut.predicted], add, whole=whole)
    return table
