"""Tables for people, from plain plans; no torch here."""

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dni_fx.planning import Plan

if TYPE_CHECKING:
    from dni_fx.checking import Report

__all__ = ["check_report", "plan_report", "quantity"]


def quantity(value: float, unit: str = "", *, base: int = 1000) -> str:
    """A number with three figures and a prefix: 1.23 M, 64.0 KiB."""
    prefixes = ("", "Ki", "Mi", "Gi", "Ti") if base == 1024 else ("", "k", "M", "G", "T")
    power = 0
    while abs(value) >= base and power < len(prefixes) - 1:
        value /= base
        power += 1
    number = f"{value:.0f}" if power == 0 else f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    return f"{number} {prefixes[power]}{unit}".strip()


def plan_report(plan: Plan) -> RenderableType:
    """Where the plan came from, its segments, and what crosses each cut."""
    head = Text.assemble(
        (plan.model, "bold"),
        f"  front end {plan.frontend}, inputs {'; '.join(plan.inputs) or 'none'} ({plan.inputs_from})\n",
        f"cuts: {plan.why}",
    )
    for reason in plan.tried:
        head.append(f"\nnot by {reason}", "dim")
    for name, segments in plan.tied.items():
        head.append(f"\ntied: {name} is used in segments {', '.join(map(str, segments))}; its gradients add up")
    if plan.rewrite is not None:
        settings = plan.rewrite
        head.append(f"\nunlock: {settings.unlock}")
        if settings.mix:
            head.append(f", mix {settings.mix:g}")
        if settings.classes:
            head.append(f", synthesizers conditioned on {settings.classes} labels: net(..., dni_context=labels)")
        if settings.context_size:
            head.append(f", synthesizers conditioned on a context of {settings.context_size}")
    return Group(head, "", _segments(plan), _cuts(plan))


def check_report(plan: Plan, report: "Report") -> RenderableType:
    """What was checked, and whether it holds."""
    table = Table(title=f"{plan.model}: {len(plan.cuts)} cuts, front end {plan.frontend}", title_justify="left")
    for name in ("check", "result", "figure"):
        table.add_column(name, overflow="fold")
    for check in report.checks:
        table.add_row(check.name, Text("pass", "green") if check.passed else Text("FAIL", "bold red"), check.figure)
    return table


def _segments(plan: Plan) -> Table:
    table = Table(title="segments", title_justify="left", show_footer=True)
    total = plan.segments
    for name, footer in (
        ("segment", ""),
        ("nodes", str(sum(len(s.nodes) for s in total))),
        ("parameters", quantity(sum(s.parameters for s in total))),
        ("FLOPs forward", quantity(sum(s.flops for s in total))),
        ("activations", quantity(sum(s.activation_bytes for s in total), "B", base=1024)),
    ):
        table.add_column(name, footer, justify="right")
    for k, segment in enumerate(total):
        table.add_row(
            str(k),
            str(len(segment.nodes)),
            quantity(segment.parameters),
            quantity(segment.flops),
            quantity(segment.activation_bytes, "B", base=1024),
        )
    return table


def _cuts(plan: Plan) -> Table:
    table = Table(title="tensors that cross each cut", title_justify="left")
    made = plan.rewrite.synthesizers if plan.rewrite else {}
    for name in ("cut", "tensor", "shape", "dtype", "bytes", *(["synthesizer"] if made else [])):
        table.add_column(name, overflow="fold", justify="right" if name in ("cut", "bytes") else "left")
    for k, cut in enumerate(plan.cuts):
        for tensor in cut.tensors:
            cells = [str(k), tensor.node, "x".join(map(str, tensor.shape)), tensor.dtype]
            cells.append(quantity(tensor.bytes, "B", base=1024))
            table.add_row(*cells, *([made[f"cut{k}_{tensor.node}"]] if made else []))
    return table
