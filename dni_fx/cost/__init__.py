"""What a training step costs: time and bytes of nodes, segments and synthesizers.

In: an annotated graph. Out: predictions for any cuts.
"""

from dni_fx.cost.exit_choices import check_exits, exit_choices, with_exits
from dni_fx.cost.exit_shares import exit_share, most_for_units
from dni_fx.cost.exits import WORST_RANK, ExitPlanner
from dni_fx.cost.hooked_exits import HookedExitPlanner
from dni_fx.cost.memory import resident
from dni_fx.cost.model import OPTIMIZER_STATES, CostModel, SegmentCost, StepCost
from dni_fx.cost.pieces import Pieces
from dni_fx.cost.synthesizers import map_choices, synthesizer_prices, without_rows
from dni_fx.cost.times import node_times

__all__ = [
    "OPTIMIZER_STATES",
    "WORST_RANK",
    "CostModel",
    "ExitPlanner",
    "HookedExitPlanner",
    "Pieces",
    "SegmentCost",
    "StepCost",
    "check_exits",
    "exit_choices",
    "exit_share",
    "map_choices",
    "most_for_units",
    "node_times",
    "resident",
    "synthesizer_prices",
    "with_exits",
    "without_rows",
]
