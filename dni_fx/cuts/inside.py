"""Which segments compute their activations again in the backward pass, and in which pieces."""

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import networkx as nx

from dni_fx.cost import CostModel, Pieces
from dni_fx.errors import DniFxError
from dni_fx.partition import Objective, Position
from dni_fx.plans import Plan

if TYPE_CHECKING:
    from dni_fx.cuts.search import Choice

__all__ = ["Recomputing", "pieces_of_plan"]


@dataclass(frozen=True)
class Recomputing:
    """Plans in which segments compute their activations again.

    Args:
        unlocked: Each segment runs its backward pass right after its forward pass, so its last stretch may be kept.
            Else this holds for the last segment alone.
    """

    cost_model: CostModel
    unlocked: bool = True

    def pieces(self, cuts: Sequence[Position], wanted: Container[int] | None = None) -> tuple[Pieces, ...]:
        """The pieces of each segment, for the least peak of its memory.

        Args:
            wanted: The segments that compute activations again; None: all.
        """
        ends = [0, *(p.index + 1 for p in cuts), self.cost_model.count]
        found: list[Pieces] = []
        for k, (start, end) in enumerate(zip(ends[:-1], ends[1:], strict=True)):
            is_last = k == len(cuts)
            options: list[Pieces] = [()]
            if wanted is None or k in wanted:
                find = self.cost_model.pieces.find
                options += [find(start, end, keep_last=True)] if self.unlocked or is_last else []
                options += [] if is_last else [find(start, end, keep_last=False)]
            found.append(self._lightest(cuts, k, options) if self.unlocked or is_last else options[-1])
        return tuple(found)

    def _lightest(self, cuts: Sequence[Position], k: int, options: Sequence[Pieces]) -> Pieces:
        """The first of the options that give segment `k` the least peak."""

        def peak(option: Pieces) -> float:
            alone: list[Pieces] = [()] * (len(cuts) + 1)
            alone[k] = option
            return self.cost_model.predict(cuts, alone).segments[k].peak.bytes

        return min(options, key=peak) if len(options) > 1 else options[0]

    def lightest(self, choices: Sequence["Choice"], objective: Objective) -> list["Choice"]:
        """The plans if every segment computes its activations again, the best first."""
        found = []
        for choice in choices:
            pieces = self.pieces(choice.cuts)
            steps = [self.cost_model.predict(choice.cuts, one) for one in ((), pieces)]
            kept, again = (
                max(s.peak.bytes for s in step.segments) if objective == "memory" else step.slowest for step in steps
            )
            found.append(replace(choice, value=choice.value - kept + again, bound=0.0, pieces=pieces))
        return sorted(found, key=lambda choice: choice.value)

    def fastest(self, choices: Sequence["Choice"], budget: int) -> "tuple[Choice | None, float]":
        """The plan with the least time of a step whose peak fits into the budget; and the least peak.

        A segment computes its activations again if its peak does not fit otherwise.
        """
        costs = [self.cost_model.predict(choice.cuts) for choice in choices]
        least, best, fastest = math.inf, math.inf, None
        for kept, choice in sorted(zip(costs, choices, strict=True), key=lambda one: one[0].step):
            if kept.step >= best:  # a second run of a segment would add to this time
                break
            room = budget - kept.resident - kept.synthesizers
            wanted = {k for k, segment in enumerate(kept.segments) if segment.peak.bytes > room}
            pieces = self.pieces(choice.cuts, wanted) if wanted else ()
            predicted = self.cost_model.predict(choice.cuts, pieces) if wanted else kept
            least = min(least, predicted.peak)
            if predicted.peak <= budget and predicted.step < best:
                best, fastest = predicted.step, replace(choice, pieces=pieces)
        return fastest, least


def pieces_of_plan(flow: "nx.DiGraph[str]", plan: Plan) -> tuple[Pieces, ...]:
    """The pieces of a saved plan, which was made for the same graph.

    Raises:
        DniFxError: If a piece does not lie in its segment, behind the piece before.
    """
    order = {name: i for i, name in enumerate(flow, 1)}
    found: list[Pieces] = []
    for k, segment in enumerate(plan.segments):
        nodes = set(segment.nodes)
        pieces = [(order.get(first, 0), order.get(last, 0)) for first, last in segment.recomputed]
        apart = all(one[1] < other[0] for one, other in zip(pieces, pieces[1:], strict=False))
        inside = all({first, last} <= nodes for first, last in segment.recomputed)
        if not (apart and inside and all(0 < first <= last for first, last in pieces)):
            raise DniFxError(f"the plan does not hold legal pieces: segments[{k}].recomputed={segment.recomputed}")
        found.append(tuple(pieces))
    return tuple(found) if any(found) else ()
