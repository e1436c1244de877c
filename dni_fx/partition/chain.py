"""The best cuts along a chain of places in a fixed order: exact dynamic programs, on plain numbers.

Places are numbered 0 (before everything) to n (after everything); a cut is a place between these two. `loads_from(i)`
returns an array: the loads of the segments that start at place i and end at places i + 1, i + 2, ... An impossible
segment has an infinite load, and the array may end before a run of impossible segments. A load can be anything that
numbers can express. A search takes O(cuts n^2) comparisons; numpy does one row of them at a time.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from dni_fx.partition.workload import Integers, Numbers

__all__ = ["LoadsFrom", "Split", "best", "cheapest", "heaviest", "lightest"]

LoadsFrom = Callable[[int], Numbers]


class Split(NamedTuple):
    """Cuts in ascending order, and the minimised value: infinity if there is no such split."""

    value: float
    cuts: tuple[int, ...]


def lightest(loads_from: LoadsFrom, places: int, cuts: int, speeds: Sequence[float] = ()) -> list[Split]:
    """Find, for every number of cuts up to `cuts`, the split with the lightest heaviest segment.

    Args:
        places: The number of the last place, n.
        speeds: Of the machine of each segment, one more than `cuts`, by which its load is divided. Empty: all are 1.

    Returns:
        `cuts + 1` splits; number k has exactly k cuts. Of equally good splits, the last cut of this one is the latest.
    """
    per = _column(speeds, cuts)
    return _search(loads_from, places, cuts, lambda score, load, _: np.maximum(score, load / per))


def cheapest(
    loads_from: LoadsFrom,
    places: int,
    cuts: int,
    prices: Numbers,
    limit: float = math.inf,
    speeds: Sequence[float] = (),
) -> Split:
    """Find the split of exactly `cuts` cuts with the least sum of `prices`, in which no segment is above `limit`.

    One search for the sum of load and price would be wrong: below its last cut, the best split need not be the lightest
    one. Of equally cheap splits, the last cut of this one is the latest.
    """

    per = _column(speeds, cuts)

    def join(score: Numbers, load: Numbers, ends: slice) -> Numbers:
        return np.where(load / per <= limit, score + prices[ends], math.inf)

    return _search(loads_from, places, cuts, join)[cuts]


def best(
    loads_from: LoadsFrom, places: int, cuts: int, prices: Numbers, floor: float, speeds: Sequence[float] = ()
) -> Split:
    """Find the split of exactly `cuts` cuts with the least sum of its heaviest load and its prices.

    Each round finds the cheapest split that is lighter than the split before, until no lighter one can be better: this
    is exact. The number of rounds is small if the prices take few values.

    Args:
        floor: The lightest heaviest segment of any split of so many cuts, as `lightest` finds it.
    """
    found = Split(math.inf, ())
    limit = math.inf
    while True:
        split = cheapest(loads_from, places, cuts, prices, limit, speeds)
        if math.isinf(split.value) or floor + split.value >= found.value:
            return found
        load = heaviest(loads_from, places, split.cuts, speeds)
        if load + split.value < found.value:
            found = Split(load + split.value, split.cuts)
        limit = math.nextafter(load, -math.inf)


def heaviest(loads_from: LoadsFrom, places: int, cuts: Sequence[int], speeds: Sequence[float] = ()) -> float:
    """The load of the heaviest segment between these cuts."""
    ends = [0, *cuts, places]
    per = speeds or [1.0] * (len(cuts) + 1)
    return max(float(loads_from(i)[j - i - 1]) / speed for i, j, speed in zip(ends[:-1], ends[1:], per, strict=True))


def _column(speeds: Sequence[float], cuts: int) -> Numbers:
    return np.array(speeds or [1.0] * (cuts + 1))[:, None]


def _search(
    loads_from: LoadsFrom, places: int, cuts: int, join: Callable[[Numbers, Numbers, slice], Numbers]
) -> list[Split]:
    """Extend splits place by place, for all numbers of cuts at once.

    Args:
        join: Computes the scores of splits with one more segment, from the scores so far (a column), the loads of that
            segment (a row), and the places where it ends.
    """
    scores = np.full((cuts + 2, places + 1), math.inf)  # by number of segments
    came_from = np.zeros((cuts + 2, places + 1), dtype=int)
    scores[0, 0] = 0.0
    for i in range(places):
        if not np.isfinite(scores[:, i]).any():
            continue
        row = loads_from(i)
        ends = slice(i + 1, i + 1 + len(row))
        joined = join(scores[:-1, i : i + 1], row[None, :], ends)
        better = (joined <= scores[1:, ends]) & np.isfinite(joined)
        scores[1:, ends][better], came_from[1:, ends][better] = joined[better], i
    return [Split(float(scores[k, places]), _trace(came_from, k, places)) for k in range(1, cuts + 2)]


def _trace(came_from: Integers, segments: int, place: int) -> tuple[int, ...]:
    cuts: list[int] = []
    for k in range(segments, 1, -1):
        place = int(came_from[k, place])
        cuts.append(place)
    return tuple(reversed(cuts))
