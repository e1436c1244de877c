"""Split a workload: by the exact method if possible, else by the best split along some orders, refined.

A split that is not proven to be optimal comes with a lower bound.
"""

from typing import NamedTuple

from dni_fx.partition.lattice import Lattice
from dni_fx.partition.orders import is_chain, orders, split_along_order
from dni_fx.partition.refinement import refine
from dni_fx.partition.workload import Integers, Objective, TooManyError, Workload

__all__ = ["CAP", "Solution", "solve"]

CAP = 300_000  # most down-sets in one window of the lattice


class Solution(NamedTuple):
    """The segment of each node; and a lower bound of the heaviest load, or None if the split is optimal."""

    label: Integers
    lower_bound: float | None


def solve(work: Workload, segments: int, objective: Objective, cap: int = CAP) -> Solution:
    """Find a split into at most `segments` segments.

    Args:
        cap: The most down-sets that the exact method enumerates at once.
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
    if load < lattice.too_high:  # this ceiling is lower than the limits that were too much work
        label, floor = lattice.lightest(floor, load)
    return Solution(found, floor) if label is None else Solution(label, None)


def _along_orders(work: Workload, segments: int, objective: Objective, floor: float) -> Integers:
    found = [split_along_order(work, order, segments, objective, floor) for order in orders(work)]
    if not is_chain(work):
        found = [refine(work, split, segments, objective) for split in found]
    return min(found, key=lambda split: _heaviest(work, split, segments, objective))


def _heaviest(work: Workload, label: Integers, segments: int, objective: Objective) -> float:
    return float(work.loads_of(label, segments, objective).max())
