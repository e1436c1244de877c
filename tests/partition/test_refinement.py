"""Refinement: no split gets heavier, and the cut between two segments is the least."""

from typing import Any

import numpy as np
import pytest
from random_graphs import OBJECTIVES, layered, workload

from dni_fx.partition.orders import orders, split_along_order
from dni_fx.partition.refinement import _least_cut, refine


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_refining_makes_no_split_heavier_and_some_lighter(objective: Any) -> None:
    lighter = 0
    for seed in range(6):
        work = workload(layered(150, 10, seed))
        for order in orders(work):
            assert sorted(order) == list(range(150))
            assert all(np.argsort(order)[a] < np.argsort(order)[b] for b in range(150) for a in work.before[b])
            split = split_along_order(work, order, 4, objective, 0.01)
            refined = refine(work, split, 4, objective)
            assert all(refined[a] <= refined[b] for b in range(150) for a in work.before[b])
            before, after = (work.loads_of(label, 4, objective).max() for label in (split, refined))
            assert after <= before
            lighter += after < before
    assert lighter > 3


def test_the_cut_between_two_segments_is_least() -> None:
    """Of all ways to put the nodes near it on its two sides."""
    changed = 0
    for seed in range(60):
        work = workload(layered(18, 3, seed))
        label = (np.arange(18) >= 9).astype(np.int64)
        near = range(5, 13)
        room = work.weight[5:9].sum() + 1e-9, work.weight[9:13].sum() + 1e-9
        loads = 100 - np.array([room[1], room[0], 0.0])  # the third takes no part
        found = _least_cut(work, label, 0, loads)
        sides = [label.copy() for _ in range(2 ** len(near))]
        for i, side in enumerate(sides):
            side[near] = [i >> bit & 1 for bit in range(len(near))]
        legal = [s for s in sides if all(s[a] <= s[b] for b in range(18) for a in work.before[b])]
        assert transferred(work, found) == pytest.approx(min(transferred(work, side) for side in legal))
        assert set(np.flatnonzero(found != label)) <= set(near)
        changed += transferred(work, found) < transferred(work, label)
    assert changed > 20


def transferred(work: Any, label: np.ndarray) -> float:
    """The sum over all cuts of the costs of the outputs that cross them."""
    return float(((work.last_used_at(label) - work.made_at(label)) * work.cost).sum())
