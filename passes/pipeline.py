"""The passes that a plan needs, in order."""

from torch.fx.passes.infra.pass_base import PassBase

from dni_fx import ops
from dni_fx.passes.add_context import AddContext
from dni_fx.passes.add_exits import AddExits
from dni_fx.passes.add_pieces import AddPieces
from dni_fx.passes.add_synthesizers import AddSynthesizers
from dni_fx.passes.add_time_cuts import AddTimeCuts
from dni_fx.passes.copy_written import CopyWritten
from dni_fx.passes.cut_states_off import CutStatesOff
from dni_fx.passes.decouple_cuts import DecoupleCuts
from dni_fx.passes.decouple_units import DecoupleUnits
from dni_fx.passes.mark_segments import MarkSegments
from dni_fx.plans import Plan

__all__ = ["passes_of"]


def passes_of(plan: Plan, *, runs_graph: bool) -> list[PassBase]:
    """The passes that rewrite a captured graph by a plan.

    Args:
        runs_graph: The graph runs. A module without a graph makes its cuts in time before and after it calls the model.
    """
    rewrite, states = plan.rewrite, plan.states if runs_graph else ()
    assert rewrite is not None
    unlocked = rewrite.unlock == "backward"
    pieces = [piece for segment in plan.segments for piece in segment.recomputed]
    return [
        MarkSegments([cut.after for cut in plan.cuts]),
        *([CutStatesOff([t.output for state in states for t in state.tensors])] if states else []),
        *([AddContext()] if plan.takes_context else []),
        *([AddExits(plan.cuts)] if any(cut.exit for cut in plan.cuts) else []),
        AddSynthesizers([[tensor.node for tensor in cut.predicted] for cut in plan.cuts]),
        *([DecoupleUnits(plan.cuts)] if any(cut.exit and cut.exit.unit for cut in plan.cuts) else []),
        DecoupleCuts(ops.decouple if unlocked else ops.inject),
        *([CopyWritten()] if unlocked else []),
        *([AddTimeCuts(states)] if states else []),
        *([AddPieces(pieces)] if pieces else []),
    ]
