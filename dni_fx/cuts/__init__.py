"""Where to cut: at the places that the user asks for, or at the best ones.

In: an annotated graph and its costs. Out: a `Plan`.
"""

from dni_fx.cuts.decide import Cuts, decide
from dni_fx.cuts.exits import ExitPlanner, exit_planner, with_exits
from dni_fx.cuts.plan import Decision, fingerprint, make_plan
from dni_fx.cuts.search import Limits

__all__ = ["Cuts", "Decision", "ExitPlanner", "Limits", "decide", "exit_planner", "fingerprint", "make_plan", "with_exits"]
