"""Which method splits a workload: the exact one where it can, else the best along some orders, refined.

Never a heuristic that does not say so: with every split goes a bound that no split can beat.
"""

from typing import NamedTuple

from dni_fx.partition.lattice import Lattice
from dni_fx.partition.orders import is_chain, orders, split_along_orders
from dni_fx.partition.refinement import refine
from dni_fx.partition.workload import Integers, Objective, TooManyError, Workload

__all__ = ["CAP", "Solution", "solve"]

CAP = 300_000  # down-sets in one window of the lattice


class Solution(NamedTuple):
    """The segment of each node; and the bound, or None where no split is lighter."""

    label: Integers
    lower_bound: float | None


def solve(work: Workload, segments: int, objective: Objective, cap: int = CAP) -> Solution:
    """A split into at most `segments` segments.

    Args:
        cap: The exact method looks at no more down-sets at once.
    """
    segments = min(segments, len(work.weight))
    floor = max(work.total / segments, float(work.weight.max()))
    try:
        lattice = Lattice(work, segments, objective, cap)
    except TooManyError:
        return Solution(_along_orders(work, segments, objective, floor), floor)
    label, floor = lattice.lightest(floor, work.total)
    if label is not None:
        return Solution(label, None)
    found = _along_orders(work, segments, objective, floor)
    if is_chain(work):
        return Solution(found, None)
    load = _heaviest(work, found, segments, objective)
    if load < lattice.too_high:  # a better ceiling than the exact method had
        label, floor = lattice.lightest(floor, load)
    return Solution(found, floor) if label is None else Solution(label, None)


def _along_orders(work: Workload, segments: int, objective: Objective, floor: float) -> Integers:
    found = [split_along_orders(work, order, segments, objective, floor) for order in orders(work)]
    if not is_chain(work):
        found = [refine(work, split, segments, objective) for split in found]
    return min(found, key=lambda split: _heaviest(work, split, segments, objective))


def _heaviest(work: Workload, label: Integers, segments: int, objective: Objective) -> float:
    return float(work.loads_of(label, segments, objective).max())
