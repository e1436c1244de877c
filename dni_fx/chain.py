"""The best cuts along a chain of places in a fixed order: exact dynamic programs, on plain numbers.

Places are numbered 0 (before everything) to n (after everything); a cut is a place between the two. `loads(i)` gives
the loads of the segments that start at place i and end at places i + 1, i + 2, ...: an array, which may stop early
where all that follow are no segments, and holds infinity where one is not. Only loads are looked at, so any load will
do; O(units n^2) comparisons, of which numpy does a row at a time.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Loads", "Split", "affordable", "cheapest", "heaviest", "lightest"]

Loads = Callable[[int], NDArray[np.float64]]


class Split(NamedTuple):
    """Cuts in ascending order, and what was minimised: infinity where there is no such split."""

    value: float
    cuts: tuple[int, ...]


def lightest(loads: Loads, places: int, units: int, widths: Sequence[int] | None = None) -> list[Split]:
    """For each number of units up to `units`, the split that makes the heaviest segment lightest.

    Args:
        places: n: the number of the last place.
        units: The most that the cuts may use up together.
        widths: How many units a cut at each place 0..n uses, 1 or more; None: one each, so that u units are u + 1
            segments.

    Returns:
        `units + 1` splits, of which number u uses exactly u units. Of equal ones that with the latest last cut.
    """
    return _search(loads, places, units, widths, lambda score, load, _: np.maximum(score, load))


def cheapest(
    loads: Loads,
    places: int,
    units: int,
    limit: float,
    prices: NDArray[np.float64],
    widths: Sequence[int] | None = None,
) -> list[Split]:
    """The same for the least sum of `prices` of the cuts, where no segment is heavier than `limit`.

    One search for load and price would be wrong: the best split's lower part need not be the lightest one below its
    last cut.
    """

    def join(score: NDArray[np.float64], load: NDArray[np.float64], ends: slice) -> NDArray[np.float64]:
        return np.where(load <= limit, score + prices[ends], math.inf)

    return _search(loads, places, units, widths, join)


def affordable(
    loads: Loads,
    places: int,
    units: int,
    prices: NDArray[np.float64],
    budget: float,
    widths: Sequence[int] | None = None,
) -> Split:
    """The least heaviest segment among splits of exactly `units` units whose prices sum to `budget` at most.

    Of equal ones the cheapest, then the one with the latest cuts. Exact: loads are searched by bisection until none
    lies between what is too little and what is enough.
    """
    low = lightest(loads, places, units, widths)[units].value
    found = cheapest(loads, places, units, low, prices, widths)[units]
    if found.value <= budget or math.isinf(low):
        return Split(low, found.cuts)
    found = cheapest(loads, places, units, math.inf, prices, widths)[units]
    if found.value > budget:
        return Split(math.inf, ())
    high = heaviest(loads, places, found.cuts)
    while True:
        between = [row[(row > low) & (row < high)] for row in map(loads, range(places))]
        values = np.concatenate(between)
        if not len(values):
            return Split(high, cheapest(loads, places, units, high, prices, widths)[units].cuts)
        middle = float(np.partition(values, len(values) // 2)[len(values) // 2])
        found = cheapest(loads, places, units, middle, prices, widths)[units]
        if found.value <= budget:
            high = heaviest(loads, places, found.cuts)
        else:
            low = middle


def heaviest(loads: Loads, places: int, cuts: Sequence[int]) -> float:
    """The load of the heaviest segment between these cuts."""
    ends = [0, *cuts, places]
    return max(float(loads(i)[j - i - 1]) for i, j in zip(ends[:-1], ends[1:], strict=True))


def _search(
    loads: Loads,
    places: int,
    units: int,
    widths: Sequence[int] | None,
    join: Callable[[NDArray[np.float64], NDArray[np.float64], slice], NDArray[np.float64]],
) -> list[Split]:
    """Forward over the places; each row is joined to all that ends at its place, for all numbers of units at once.

    Args:
        join: The scores of splits with one more segment, from the scores so far (a column), the loads of the segment
            (a row), and the places where it ends.
    """
    used = np.ones(places + 1, dtype=int) if widths is None else np.asarray(widths, dtype=int).copy()
    used[places] = 0  # the end is no cut
    best = np.full((units + 1, places + 1), math.inf)
    came = np.zeros((units + 1, places + 1), dtype=int)
    best[0, 0] = 0.0
    kinds = np.unique(used[1:])
    kinds = kinds[kinds <= units]
    for i in range(places):
        rows = np.flatnonzero(np.isfinite(best[:, i]))
        if not len(rows):
            continue
        row = loads(i)
        ends = slice(i + 1, i + 1 + len(row))
        joined = join(best[:, i : i + 1], row[None, :], ends)
        for width in kinds:
            columns = used[ends] == width
            scores = joined[: units + 1 - width]
            there, here = best[width:, ends], came[width:, ends]
            better = columns & (scores <= there) & np.isfinite(scores)
            there[better], here[better] = scores[better], i
    return [Split(float(best[u, places]), _trace(came, used, u, places)) for u in range(units + 1)]


def _trace(came: NDArray[np.int_], used: NDArray[np.int_], units: int, place: int) -> tuple[int, ...]:
    cuts: list[int] = []
    while place:
        units, place = units - int(used[place]), int(came[units, place])
        if place:
            cuts.append(place)
    return tuple(reversed(cuts))
