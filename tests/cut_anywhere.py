"""Plans for any places of a graph, whatever they cost."""

from collections.abc import Sequence

from torch import fx

from dni_fx.cost.model import CostModel
from dni_fx.cuts.inside import Recomputing
from dni_fx.cuts.plan import Decision, make_plan
from dni_fx.graph.flow import dataflow
from dni_fx.partition.positions import Position
from dni_fx.plans import Plan


def plan_at(graph: fx.Graph, places: Sequence[Position], frontend: str, recomputing: str = "") -> Plan:
    """The plan of a `RandomNet` that is cut at these places.

    Args:
        recomputing: Each segment computes its activations again, for this `unlock`; empty: none does.
    """
    model = CostModel(dataflow(graph), {}, 0)
    pieces = Recomputing(model, recomputing == "backward").pieces(places) if recomputing else ()
    return make_plan("RandomNet", graph, model, Decision(tuple(places), "fuzz", pieces=pieces), (), "fuzz", frontend)
