"""The loads of all segments between two windows of the lattice: sums and one matrix product, in blocks."""

from collections.abc import Callable, Iterator

import numpy as np

from dni_fx.solver.downsets import Window
from dni_fx.solver.workload import SLACK, Numbers, Objective, Workload

__all__ = ["blocks"]

BLOCK = 1 << 20  # loads that are computed at once


def blocks(
    work: Workload, objective: Objective, below: Window, above: Window, limit: float, spend: Callable[[int], None]
) -> Iterator[tuple[slice, slice, Numbers]]:
    """The loads of all segments between two windows, but for those that are heavier than the limit anyway.

    Args:
        spend: Told how many multiplications are to follow; raises where those are too many.

    Returns:
        Which of the lower down-sets, which of the upper ones, and a matrix.
    """
    down, up = _features(work, objective, below, above)
    transfers = objective != "balanced"
    from_below = below.crossing - below.weight if transfers else -below.weight
    from_above = above.crossing + above.weight if transfers else above.weight
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
    """Matrices whose product is what is to be added to the load of each pair of down-sets.

    Far too much, where the lower one is not part of the upper one. And for what is alive at the lower end: not
    what is alive at the upper end too, for it does not leave; nor, if that is so, what has no user in between, for
    it does not enter. It has none where both ends have as many users below.
    """
    _, i, j = np.intersect1d(below.undecided, above.undecided, assume_unique=True, return_indices=True)
    far = 8.0 * (work.total + float(work.cost.sum()))
    down, up = [below.member[:, i] * far], [1.0 - above.member[:, j]]
    if objective != "balanced":
        outputs, i, j = np.intersect1d(below.outputs, above.outputs, assume_unique=True, return_indices=True)
        uses = work.uses[outputs]
        alive = above.used[:, j] < uses
        cost = -work.cost[outputs] * below.made[:, i]
        down.append(cost)
        up.append(alive.astype(float))
        if objective == "throughput":
            lower, upper = below.used[:, i], above.used[:, j]
            for count in range(int(uses.max(initial=0))):
                same = (lower == count).any(axis=0) & (upper == count).any(axis=0) & (uses > count)
                down.append(cost[:, same] * (lower[:, same] == count))
                up.append((upper[:, same] == count).astype(float))
    both = np.concatenate(down, axis=1), np.concatenate(up, axis=1)
    needed = both[0].any(axis=0) & both[1].any(axis=0)
    return both[0][:, needed], both[1][:, needed]
