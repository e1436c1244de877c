"""Which exits the cuts of a plan get."""

from dataclasses import replace

import networkx as nx

from dni_fx.cost.exits import ExitPlanner
from dni_fx.errors import DniFxError
from dni_fx.partition import find_positions
from dni_fx.plans import Cut, Plan, SegmentPlan, run_twice
from dni_fx.runtime import DecoupledModule
from dni_fx.settings import Settings
from dni_fx.synthesizers import ExitOptions, Factory, exit_options

__all__ = ["check_exits", "exit_choices", "with_exits"]


def check_exits(*, in_time: bool) -> None:
    """Raise a DniFxError if the cuts can have no exits."""
    if in_time:
        raise DniFxError("exits are for cuts in depth alone: give another synthesizer, or leave state= out")


def exit_choices(
    net: DecoupledModule, synthesizer: str | Factory, settings: Settings, *, in_time: bool
) -> list[ExitOptions]:
    """The exits to choose from, the best one first; empty: each tensor has a synthesizer of its own.

    Raises:
        DniFxError: If the synthesizer is an exit, and the model can have none.
    """
    options = exit_options(synthesizer)
    if options is not None:
        check_exits(in_time=in_time)
        return [options]
    if synthesizer != "auto" or in_time or (settings.loss is None and not net.dni_own_loss()):
        return []
    frozen = [ExitOptions(units=1, frozen_units=True)] if net.dni_runs_graph else []
    return [ExitOptions(units=2), ExitOptions(units=1), *frozen, ExitOptions(units=0)]


def with_exits(plan: Plan, flow: "nx.DiGraph[str]", planner: ExitPlanner | None, known: Plan | None = None) -> Plan:
    """A plan with the exits of its cuts; without exits, if there is neither a planner nor a known exit.

    Args:
        planner: Plans the exits, unless they are known.
        known: A plan with the same cuts, whose exits are taken as they are, if it has any.

    Raises:
        DniFxError: If a cut can have no exit.
    """
    exits = {cut.after: cut.exit for cut in known.cuts if cut.exit is not None} if known is not None else {}
    if planner is not None and not exits:
        positions = {position.after: position for position in find_positions(flow)}
        exits = {cut.after: planner.plan(positions[cut.after]) for cut in plan.cuts}
    cuts = tuple(replace(cut, exit=exits.get(cut.after)) for cut in plan.cuts)
    found: list[Cut] = []
    for cut, segment in zip(reversed(cuts), reversed(plan.segments), strict=False):  # from above
        found.append(cut if _run_once(cut, segment, found[-1] if found else None) else run_twice(cut))
    return replace(plan, cuts=tuple(reversed(found)))


def _run_once(cut: Cut, segment: SegmentPlan, next_cut: Cut | None) -> bool:
    """Whether the units of a cut run once: they are in the segment above, and do not end in a plain cut."""
    unit = None if cut.exit is None else cut.exit.unit
    if unit is None or not set(unit.nodes) <= set(segment.nodes):
        return False
    is_plain = next_cut is not None and (next_cut.exit is None or next_cut.exit.unit is None)
    return not (is_plain and next_cut is not None and unit.tensor in next_cut.tensors)
