"""Tables for people, from plain plans; no torch here."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dni_fx.planning import Plan

__all__ = ["plan_report", "quantity"]


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
    if plan.rewrite is not None:
        settings = plan.rewrite
        head.append(f"\nunlock: {settings.unlock}")
        if settings.mix:
            head.append(f", mix {settings.mix:g}")
        if settings.classes:
            head.append(f", synthesizers conditioned on {settings.classes} labels: net(..., dni_context=labels)")
        if settings.context_size:
            head.append(f", synthesizers conditioned on a context of {settings.context_size}")
    return Group(head, _segments(plan))


def _segments(plan: Plan) -> Table:
    table = Table(title="segments", title_justify="left", show_footer=True)
    total = plan.segments
    columns = [
        ("segment", ""),
        ("nodes", str(sum(len(s.nodes) for s in total))),
        ("parameters", quantity(sum(s.parameters for s in total))),
        ("FLOPs forward", quantity(sum(s.flops for s in total))),
        ("activations", quantity(sum(s.activation_bytes for s in total), "B", base=1024)),
    ]
    for name, footer in columns:
        table.add_column(name, footer, justify="right")
    table.add_column("crossing tensors above it", overflow="fold")
    for k, segment in enumerate(total):
        table.add_row(
            str(k),
            str(len(segment.nodes)),
            quantity(segment.parameters),
            quantity(segment.flops),
            quantity(segment.activation_bytes, "B", base=1024),
            _crossing(plan, k) if k < len(plan.cuts) else "",
        )
    return table


def _crossing(plan: Plan, cut: int) -> str:
    lines = []
    for tensor in plan.cuts[cut].tensors:
        made_by = plan.rewrite.synthesizers.get(f"cut{cut}_{tensor.node}") if plan.rewrite else None
        by = f" <- {made_by}" if made_by else ""
        shape = "x".join(map(str, tensor.shape))
        lines.append(f"{tensor.node} {shape} {tensor.dtype} {quantity(tensor.bytes, 'B', base=1024)}{by}")
    return "\n".join(lines)
