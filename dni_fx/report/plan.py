"""A plan as tables for people."""

from collections.abc import Callable, Sequence

from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dni_fx.plans import Forecast, Outlook, Plan, SegmentPlan, Verdict, Weighed, crossing_name, time_name
from dni_fx.units import bytes_text, quantity

__all__ = ["plan_table"]

_BAR = 16  # characters


def plan_table(plan: Plan) -> RenderableType:
    """The origin of a plan, its segments, its crossing tensors, its forecast, and the plans that lost."""
    head = Text.assemble(
        (plan.model, "bold"),
        f"  front end {plan.frontend}, inputs {'; '.join(plan.inputs) or 'none'} ({plan.inputs_from})\n",
        f"cuts: {plan.why}",
    )
    for reason in plan.tried:
        head.append(f"\nnot by {reason}", "dim")
    for name, segments in plan.tied.items():
        head.append(f"\ntied: {name} is used in segments {', '.join(map(str, segments))}; its gradients add up")
    for index, state in enumerate(plan.states):
        shapes = ", ".join(f"{tensor.input} {'x'.join(map(str, tensor.shape))}" for tensor in state.tensors)
        head.append(f"\n{time_name(index)}: {shapes}, cut in time")
        if plan.rewrite is not None:
            head.append(f", synthesizer {plan.rewrite.synthesizers[time_name(index)]}")
    if plan.rewrite is not None:
        rewrite = plan.rewrite
        head.append(f"\nunlock: {rewrite.unlock}")
        if rewrite.mix:
            head.append(f", mix {rewrite.mix}")
        if rewrite.classes:
            head.append(f", synthesizers conditioned on {rewrite.classes} labels: net(..., dni_context=labels)")
        if rewrite.loss is not None:
            head.append(f", loss {rewrite.loss or 'of your own'}")
        if rewrite.context_size:
            head.append(f", synthesizers conditioned on a context of {rewrite.context_size}")
    tables: list[RenderableType] = [_segments(plan), *([_cuts(plan)] if plan.cuts else [])]
    if plan.forecast is not None:
        tables.append(_forecast(plan, plan.forecast))
        if plan.verdict is not None:
            tables.append(_weighed(plan.verdict, plan.forecast))
    return Group(head, "", *tables)


def _segments(plan: Plan) -> Table:
    """A row for each segment, with its predicted peak as a bar; the footer has the sums."""
    unit = plan.forecast.unit if plan.forecast is not None else "FLOPs"
    table = Table(
        title=f"segments; time in {unit}; peak: predicted memory that the step allocates",
        title_justify="left",
        show_footer=True,
    )
    for name in ("segment", "nodes", "params", "forward", "backward", "synth.", "peak"):
        table.add_column(name, justify="right")
    table.add_column("", min_width=_BAR)
    largest = max(segment.peak_bytes for segment in plan.segments)
    for k, segment in enumerate(plan.segments):
        bar = Bar(max(largest, 1), 0, segment.peak_bytes, width=_BAR) if largest else ""
        table.add_row(str(k), *_sums([segment], unit), bytes_text(segment.peak_bytes), bar)
    for column, total in zip(table.columns[1:], _sums(plan.segments, unit), strict=False):
        column.footer = total
    return table


def _sums(segments: Sequence[SegmentPlan], unit: str) -> list[str]:
    """The cells of some segments, added up."""
    unit = "" if unit == "FLOPs" else unit
    return [
        str(sum(len(s.nodes) for s in segments)),
        quantity(sum(s.parameters for s in segments)),
        quantity(sum(s.forward for s in segments), unit),
        quantity(sum(s.backward for s in segments), unit),
        quantity(sum(s.synthesizers for s in segments), unit),
    ]


def _forecast(plan: Plan, forecast: Forecast) -> RenderableType:
    """The predictions beside those for backprop, and the place of the peak."""

    def made(outlook: Outlook) -> float:
        static = forecast.synthesizer_bytes if outlook is forecast.cut else 0
        return outlook.peak_bytes - forecast.resident_bytes - static

    def time(value: float) -> str:
        return quantity(value, forecast.unit)

    table = Table("", title="predicted, for unlock=backward and Adam", title_justify="left")
    for name in ("backprop", "cut", "ratio"):
        table.add_column(name, justify="right")
    rows: list[tuple[str, Callable[[Outlook], float], Callable[[float], str]]] = [
        ("peak training memory", lambda o: o.peak_bytes, bytes_text),
        ("allocated by the step", made, bytes_text),
        ("step on one device", lambda o: o.step, time),
        ("step with a device a segment", lambda o: o.slowest, time),
    ]
    for name, of, show in rows:
        before, after = of(forecast.backprop), of(forecast.cut)
        table.add_row(name, show(before), show(after), f"{after / before:.2f}" if before else "")
    worst = max(range(len(plan.segments)), key=lambda k: plan.segments[k].peak_bytes)
    segment = plan.segments[worst]
    way = "backward" if segment.peak_backward else "forward"
    where = f"in segment {worst}, going {way} through {segment.peak_at}"
    if forecast.optimizer_bytes > segment.peak_bytes:
        where = "where the optimizer steps, with all gradients and its temporaries"
    saves = forecast.cut.peak_bytes < forecast.backprop.peak_bytes
    return Group(table, f"the peak is {where}{'' if saves else '; the cuts save no memory'}")


def _weighed(verdict: Verdict, forecast: Forecast) -> Table:
    """A row for the chosen plan, and for each plan that lost: its value, and the reason why it lost."""

    def show(value: float) -> str:
        return bytes_text(value) if verdict.objective == "memory" else quantity(value, forecast.unit)

    title = f"weighed: {verdict.objective}, and a charge for each synthesizer, more for lower ones"
    table = Table(title=title, title_justify="left")
    table.add_column("cuts after", overflow="fold")
    for name in ("heaviest", "charges", "sum", "synth. share"):
        table.add_column(name, justify="right")
    table.add_column("")
    for plan in verdict.weighed:
        cells = [show(plan.value - plan.charges), show(plan.charges), show(plan.value), f"{100 * plan.share:.2g} %"]
        table.add_row(", ".join(plan.after), *cells, _lost(plan, verdict))
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


def _cuts(plan: Plan) -> Table:
    """A row for each tensor that crosses a cut."""
    table = Table(title="tensors that cross each cut", title_justify="left")
    names = plan.rewrite.synthesizers if plan.rewrite else {}
    for name in ("cut", "tensor", "shape", "dtype", "bytes", *(["synthesizer"] if names else [])):
        table.add_column(name, overflow="fold", justify="right" if name in ("cut", "bytes") else "left")
    for k, cut in enumerate(plan.cuts):
        for tensor in cut.tensors:
            cells = [str(k), tensor.node, "x".join(map(str, tensor.shape)), tensor.dtype]
            cells.append(bytes_text(tensor.bytes))
            table.add_row(*cells, *([names[crossing_name(k, tensor.node)]] if names else []))
    return table
