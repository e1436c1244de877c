"""Which method splits a workload: the exact one where it can, else the best along some orders, refined.

Never a heuristic that does not say so: with every split goes a bound that no split can beat.
"""

from typing import NamedTuple

from dni_fx import prefixes
from dni_fx.downsets import TooManyError
from dni_fx.lattice import Lattice
from dni_fx.refining import refine
from dni_fx.workload import Integers, Objective, Workload

__all__ = ["CAP", "Solution", "solve"]

CAP = 300_000  # down-sets in one window of the lattice


class Solution(NamedTuple):
    """The segment of each node; and the bound, or None where no split is lighter."""

    label: Integers
    lower_bound: float | None


def solve(work: Workload, segments: int, objective: Objective, cap: int = CAP) -> Solution:
    """A split into at most `segments` segments.

    Args:
        cap: At most so many down-sets at once: the exact method is used where there are no more.
    """
    segments = min(segments, len(work.weight))
    floor = max(work.total / segments, float(work.weight.max()))
    try:
        lattice = Lattice(work, segments, objective, cap)
        label, floor = lattice.lightest(floor, work.total)
    except TooManyError:
        label = None
    if label is not None:
        return Solution(label, None)
    splits = [prefixes.split(work, order, segments, objective, floor) for order in prefixes.orders(work)]
    if prefixes.is_chain(work):
        return Solution(splits[0], None)
    refined = [refine(work, split, segments, objective) for split in splits]
    return Solution(min(refined, key=lambda split: _heaviest(work, split, segments, objective)), floor)


def _heaviest(work: Workload, label: Integers, segments: int, objective: Objective) -> tuple[float, float]:
    tie = work.crossing(label) if objective == "balanced" else 0.0
    return float(work.loads(label, segments, objective).max()), tie
