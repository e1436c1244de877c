"""Plan in the order in which a graph was traced and in another one, and keep the better plan and its order."""

import math
from collections.abc import Callable
from dataclasses import replace

import networkx as nx
from torch import fx

from dni_fx.cost import CostModel
from dni_fx.cuts.other_order import other_order
from dni_fx.cuts.search import Limits
from dni_fx.errors import DniFxError
from dni_fx.partition import find_positions
from dni_fx.passes.reorder_nodes import ReorderNodes
from dni_fx.plans import Plan

__all__ = ["in_better_order"]

_SEGMENTS = 4  # that `partition` looks for, if no number is asked for

Planned = tuple[CostModel, Plan]


def in_better_order(
    module: fx.GraphModule,
    flow: "nx.DiGraph[str]",
    planned: Callable[[], Planned],
    segments: int | None,
    limits: Limits,
) -> Planned:
    """The better plan of the two orders, which says what it was weighed against; the graph is in its order then.

    Args:
        flow: Of the graph as traced.
        planned: Plans the graph in the order that it has.
        segments: The number that is asked for; with a memory budget, the most.

    Raises:
        DniFxError: If there is no plan in the order as traced, nor in another.
    """
    error: DniFxError | None = None
    found: Planned | None = None
    try:
        found = planned()
    except DniFxError as raised:
        error = raised
    most = segments or max(_SEGMENTS, 0 if found is None else len(found[1].segments))
    other = other_order(module.graph, flow, most, limits.objective)
    if not other.names:
        if found is None:
            assert error is not None
            raise error
        return _with_note(found, f"as traced, since {other.kept}") if other.kept else found
    traced = [node.name for node in module.graph.nodes]
    ReorderNodes(other.names)(module)
    try:
        second = planned()
    except DniFxError:
        second = None
    fewest = limits.budget is not None
    if second is not None and (found is None or _worth(*second, fewest) < _worth(*found, fewest)):
        return _with_note(second, f"in another order, since as traced {_loss(found, second)}")
    ReorderNodes(traced)(module)
    if found is None:
        assert error is not None
        raise error
    return _with_note(found, f"as traced, since in another order {_loss(second, found)}")


def _with_note(found: Planned, note: str) -> Planned:
    cost_model, plan = found
    return cost_model, replace(plan, why=f"{plan.why}; the nodes run {note}")


def _worth(cost_model: CostModel, plan: Plan, fewest: bool) -> tuple[float, ...]:
    """What the better plan has less of: segments if the fewest are asked for, bad places, and its cost."""
    after = {cut.after for cut in plan.cuts}
    ranks = [cost_model.rank(position) for position in find_positions(cost_model.flow) if position.after in after]
    return not after, len(after) * fewest, max(ranks, default=0), _cost(plan)


def _cost(plan: Plan) -> float:
    return math.inf if plan.verdict is None else plan.verdict.weighed[0].value


def _loss(loser: Planned | None, winner: Planned) -> str:
    """Why a plan lost."""
    if loser is None or not loser[1].cuts:
        return "no cuts are worth it" if loser is not None else "there are no such cuts"
    more = _cost(loser[1]) / _cost(winner[1]) - 1 if winner[1].cuts else 0.0
    return f"the cuts cost {100 * more:.2g} % more" if more > 0 else "the cuts are no better"
