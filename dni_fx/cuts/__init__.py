"""Where to cut: at the places that the user asks for, or at the best ones.

In: an annotated graph and its costs. Out: a `Plan`.
"""

from dni_fx.cuts.asked import check_graph
from dni_fx.cuts.better_order import in_better_order
from dni_fx.cuts.decide import Cuts, decide
from dni_fx.cuts.inside import Recomputing
from dni_fx.cuts.places import Place, places_of
from dni_fx.cuts.plan import Decision, fingerprint, make_plan
from dni_fx.cuts.search import Limits

__all__ = [
    "Cuts",
    "Decision",
    "Limits",
    "Place",
    "Recomputing",
    "check_graph",
    "decide",
    "fingerprint",
    "in_better_order",
    "make_plan",
    "places_of",
]
