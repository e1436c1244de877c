"""The exact method: the lightest split along the lattice of down-sets.

Cuts lie at down-sets. The loads of all segments between two windows of down-sets are sums and one matrix product.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np

from dni_fx.partition.downsets import Closures, Window, window
from dni_fx.partition.workload import SLACK, Integers, Numbers, Objective, TooManyError, Workload

__all__ = ["Lattice", "blocks"]

BLOCK = 1 << 20  # loads that are computed at once


def blocks(
    work: Workload, objective: Objective, below: Window, above: Window, limit: float, spend: Callable[[int], None]
) -> Iterator[tuple[slice, slice, Numbers]]:
    """Compute the loads of all segments between two windows, except segments that weigh more than the limit.

    Args:
        spend: Called with the number of multiplications before each block; raises if there are too many.

    Yields:
        Which rows of the lower window, which rows of the upper window, and the matrix of loads.
    """
    down, up = _features(work, objective, below, above)
    from_below = below.crossing - below.weight
    from_above = above.crossing + above.weight
    height = max(1, BLOCK // max(1, len(above.weight)))
    for start in range(0, len(below.weight), height):
        rows = slice(start, min(start + height, len(below.weight)))
        heaviest = below.weight[rows.stop - 1] + limit
        columns = slice(
            int(np.searchsorted(above.weight, below.weight[start] - SLACK * work.total)),
            int(np.searchsorted(above.weight, heaviest, side="right")),
        )
        if columns.start < columns.stop:
            spend((rows.stop - rows.start) * (columns.stop - columns.start) * (down.shape[1] + 8))
            load = from_below[rows, None] + from_above[None, columns]
            if down.shape[1]:
                load += down[rows] @ up[columns].T
            yield rows, columns, load


def _features(work: Workload, objective: Objective, below: Window, above: Window) -> tuple[Numbers, Numbers]:
    """Two matrices: `down @ up.T` corrects the load of the segment between each lower and each upper down-set.

    The load so far counts the costs of all outputs that are alive at either end. The columns are:

    - a prohibitive load, if a node is in the lower down-set and not in the upper one;
    - minus the cost of an output that is alive at both ends: it does not leave the segment;
    - for "throughput", minus the cost of such an output once more if it has no user in the segment: it does not enter.
      It has none if as many users lie in the lower down-set as in the upper one.
    """
    _, i, j = np.intersect1d(below.undecided, above.undecided, assume_unique=True, return_indices=True)
    prohibitive = 8.0 * (work.total + float(work.cost.sum()))
    not_contained = below.member[:, i] * prohibitive, 1.0 - above.member[:, j]
    outputs, i, j = np.intersect1d(below.outputs, above.outputs, assume_unique=True, return_indices=True)
    uses = work.uses[outputs]
    alive = above.used[:, j] < uses
    cost = -work.cost[outputs] * below.made[:, i]
    down, up = [not_contained[0], cost], [not_contained[1], alive.astype(float)]
    if objective == "throughput":
        lower, upper = below.used[:, i], above.used[:, j]
        for count in range(int(uses.max(initial=0))):
            same = (lower == count).any(axis=0) & (upper == count).any(axis=0) & (uses > count)
            down.append(cost[:, same] * (lower[:, same] == count))
            up.append((upper[:, same] == count).astype(float))
    both = np.concatenate(down, axis=1), np.concatenate(up, axis=1)
    needed = both[0].any(axis=0) & both[1].any(axis=0)
    return both[0][:, needed], both[1][:, needed]


WORK = 20_000_000_000  # multiplications for one limit; three times as many in all

COLUMN = 50  # multiplications that take as long as one entry of a window

FAILURES = 3  # searches with too much work, before the method gives up


class Lattice:
    """Finds splits of one workload into at most `segments` segments."""

    def __init__(self, work: Workload, segments: int, objective: Objective, cap: int) -> None:
        self._work = work
        self._segments = segments
        self._objective = objective
        self._cap = cap
        self._closures = Closures.of(work)
        self.seen = 0  # number of down-sets in the last windows
        self._spent = 0  # multiplications
        self._allowed = 0
        self.too_high = math.inf  # the lowest limit for which the search was too much work

    def lightest(self, floor: float, ceiling: float) -> tuple[Integers | None, float]:
        """Find the split with the lightest heaviest segment.

        Args:
            floor: A proven lower bound of the heaviest load.
            ceiling: The heaviest load of a known split: no higher limit is tried.

        Returns:
            The split, or None if there are too many down-sets; and the lower bound that is proven then.
        """
        growth, failures = 0.01, 0
        while failures < FAILURES and self._spent < 3 * WORK:
            limit = min(floor * (1 + growth), ceiling)
            try:
                label = self.within(limit)
            except TooManyError:
                self.too_high = min(self.too_high, limit)
                failures += 1
                growth /= 3
                continue
            if label is not None:
                return label, floor
            if limit == ceiling:  # a split that heavy exists: rounding has hidden it
                ceiling *= 1 + 1e-9
                failures += 1
                continue
            floor = limit
            growth *= (2 if self.seen > 2000 else 6) if not failures else 1
        return None, floor

    def within(self, limit: float) -> Integers | None:
        """The lightest split, if no segment of it is heavier than the limit; else None.

        Raises:
            TooManyError: If the search is too much work.
        """
        self._allowed = min(self._spent + WORK, 3 * WORK)
        return self._search(self._windows(limit), limit + SLACK * self._work.total)

    def _windows(self, limit: float) -> list[Window]:
        """The down-sets at which the 0th, 1st, ... segment can end, if no segment is heavier than the limit.

        An output that is alive there leaves a segment below and enters a segment above: its cost counts on both sides.
        """
        work, count, total = self._work, self._segments, self._work.total
        windows = []
        self.seen = 0
        for k in range(count + 1):
            low, high = max(0.0, total - (count - k) * limit) if k else 0.0, min(total, k * limit)
            found = window(work, self._closures, low, high, self._cap)
            self._spend(COLUMN * (found.member.size + found.made.size))
            if k == 0:  # the empty set
                found = found.keep(np.flatnonzero(~found.member.any(axis=1)))
            elif k == count:  # all nodes
                found = found.keep(np.flatnonzero(found.member.all(axis=1)))
            else:
                slack = SLACK * total
                fits = found.weight + found.crossing <= k * limit + slack
                found = found.keep(fits & (total - found.weight + found.crossing <= (count - k) * limit + slack))
            windows.append(found)
            self.seen += len(found.weight)
        return windows

    def _spend(self, multiplications: int) -> None:
        self._spent += multiplications
        if self._spent > self._allowed:
            raise TooManyError

    def _search(self, windows: list[Window], limit: float) -> Integers | None:
        """The split with the lightest heaviest segment; None if that is heavier than the limit."""
        heaviest = np.zeros(1)  # of the segments below each down-set that was reached
        reached = [np.zeros(1, dtype=np.int64)]  # rows of each window
        came_from: list[Integers] = [np.zeros(1, dtype=np.int64)]
        below = windows[0]
        for above in windows[1:]:
            best = np.full(len(above.weight), math.inf)
            source = np.zeros(len(above.weight), dtype=np.int64)
            for rows, columns, load in blocks(self._work, self._objective, below, above, limit, self._spend):
                joined = np.maximum(heaviest[rows, None], load)
                least = joined.argmin(axis=0)
                value = joined[least, np.arange(joined.shape[1])]
                better = value < best[columns]
                best[columns][better] = value[better]
                source[columns][better] = least[better] + rows.start
            rows_left = np.flatnonzero(best <= limit)
            if not len(rows_left):
                return None
            reached.append(rows_left)
            came_from.append(source[rows_left])
            heaviest, below = best[rows_left], above.keep(rows_left)
        return self._label(windows, reached, came_from)

    def _label(self, windows: list[Window], reached: list[Integers], came_from: list[Integers]) -> Integers:
        label = np.full(len(self._work.weight), len(windows) - 2, dtype=np.int64)
        row = 0
        for k in range(len(windows) - 1, 0, -1):
            found = windows[k]
            inside = found.inside.copy()
            inside[found.undecided] = found.member[reached[k][row]] == 1
            label[inside] = np.minimum(label[inside], k - 1)
            row = int(came_from[k][row])
        return label
