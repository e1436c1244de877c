"""The exact method: a dynamic program over the lattice of down-sets.

After Tarnawski, Phanishayee, Devanur, Mahajan & Nina Paravecino, "Efficient Algorithms for Device Placement of DNN
Graph Operators" (NeurIPS 2020), section 5. Here only down-sets are looked at that lie on a split with no segment
heavier than a limit; where no split keeps to the limit, that is a bound, and the limit grows.
"""

import math
from collections.abc import Callable

import numpy as np

from dni_fx.solver.between import blocks
from dni_fx.solver.closures import Closures
from dni_fx.solver.downsets import Window, window
from dni_fx.solver.workload import SLACK, Integers, Numbers, Objective, TooManyError, Workload

__all__ = ["Lattice"]

Join = Callable[[Numbers, Numbers, Numbers], Numbers]
WORK = 20_000_000_000  # multiplications for one limit; three times as many in all
COLUMN = 50  # multiplications that cost as much as one node or output of one down-set
FAILURES = 3  # limits that leave too much to do, until the search is given up


class Lattice:
    """Splits of one workload into at most `segments` segments."""

    def __init__(self, work: Workload, segments: int, objective: Objective, cap: int) -> None:
        self._work = work
        self._segments = segments
        self._objective = objective
        self._cap = cap
        self._closures = Closures.of(work)
        self.seen = 0  # down-sets, in the last windows
        self._spent = 0  # multiplications
        self._allowed = 0
        self.too_high = math.inf  # the lowest limit that left too much to do

    def lightest(self, floor: float, ceiling: float) -> tuple[Integers | None, float]:
        """The split with the lightest heaviest segment.

        Args:
            floor: A proven bound.
            ceiling: The heaviest load of some split: no limit above it is tried.

        Returns:
            The split, or None where there are too many down-sets; and the bound that is proven then.
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
            if limit == ceiling:  # rounding: the ceiling's own split was missed by less than that
                ceiling *= 1 + 1e-9
                failures += 1
                continue
            floor = limit
            growth *= (2 if self.seen > 2000 else 6) if not failures else 1
        return None, floor

    def within(self, limit: float) -> Integers | None:
        """The lightest split where no segment is heavier than the limit; None where there is none.

        Of equally light ones, for "balanced", one that least crosses.

        Raises:
            TooManyError: If that is too much work.
        """
        self._allowed = min(self._spent + WORK, 3 * WORK)
        windows = self._windows(limit)
        found = self._search(windows, limit, limit, lambda score, load, _: np.maximum(score, load))
        if found is None or self._objective != "balanced":
            return found
        load = float(self._work.loads(found, self._segments, self._objective).max())

        def join(score: Numbers, loads: Numbers, crossing: Numbers) -> Numbers:
            return np.where(loads <= load + SLACK * self._work.total, score + crossing, math.inf)

        return self._search(windows, load, math.inf, join)

    def _windows(self, limit: float) -> list[Window]:
        """What may lie below the end of the 0th, 1st, ... segment.

        What leaves a down-set leaves one of the segments below, and enters one above: that weighs as well.
        """
        work, count, total = self._work, self._segments, self._work.total
        windows = []
        self.seen = 0
        for k in range(count + 1):
            low, high = max(0.0, total - (count - k) * limit) if k else 0.0, min(total, k * limit)
            found = window(work, self._closures, low, high, self._cap)
            self._spend(COLUMN * (found.member.size + found.made.size))
            if k == 0:  # without the weightless nodes
                found = found.keep(np.flatnonzero(~found.member.any(axis=1)))
            elif k == count:
                found = found.keep(np.flatnonzero(found.member.all(axis=1)))
            elif self._objective != "balanced":
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

    def _search(self, windows: list[Window], limit: float, most: float, join: Join) -> Integers | None:
        """The split with the least score, at most `most`, and no segment heavier than the limit."""
        limit, most = limit + SLACK * self._work.total, most + SLACK * self._work.total
        scores = np.zeros(1)
        reached = [np.zeros(1, dtype=np.int64)]  # rows of each window
        came: list[Integers] = [np.zeros(1, dtype=np.int64)]
        below = windows[0]
        for above in windows[1:]:
            best = np.full(len(above.weight), math.inf)
            source = np.zeros(len(above.weight), dtype=np.int64)
            for rows, columns, load in blocks(self._work, self._objective, below, above, limit, self._spend):
                joined = join(scores[rows, None], load, above.crossing[columns])
                least = joined.argmin(axis=0)
                value = joined[least, np.arange(joined.shape[1])]
                better = value < best[columns]
                best[columns][better] = value[better]
                source[columns][better] = least[better] + rows.start
            rows_left = np.flatnonzero((best <= most) & np.isfinite(best))
            if not len(rows_left):
                return None
            reached.append(rows_left)
            came.append(source[rows_left])
            scores, below = best[rows_left], above.keep(rows_left)
        return self._label(windows, reached, came)

    def _label(self, windows: list[Window], reached: list[Integers], came: list[Integers]) -> Integers:
        label = np.full(len(self._work.weight), len(windows) - 2, dtype=np.int64)
        row = 0
        for k in range(len(windows) - 1, 0, -1):
            found = windows[k]
            inside = found.inside.copy()
            inside[found.undecided] = found.member[reached[k][row]] == 1
            label[inside] = np.minimum(label[inside], k - 1)
            row = int(came[k][row])
        return label
