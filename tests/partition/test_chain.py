"""The dynamic programs against the naive way, on loads and prices that mean nothing."""

import itertools
import math
import random
from collections.abc import Iterator

import numpy as np
import pytest

from dni_fx.partition import chain
from dni_fx.partition.chain import LoadsFrom, best, cheapest, heaviest, lightest


def instance(seed: int) -> tuple[LoadsFrom, int, np.ndarray]:
    """Loads, the last place, and prices; some segments are impossible, and some rows stop early."""
    rng = random.Random(seed)
    n = rng.randrange(1, 9)
    rows = [np.array([float(rng.randrange(12)) for _ in range(n - i)]) for i in range(n)]
    for row in rows:
        row[np.array([rng.random() < 0.1 for _ in row])] = math.inf
    if rng.random() < 0.3:
        rows = [row[: rng.randrange(len(row) + 1)] if rng.random() < 0.3 else row for row in rows]
    return rows.__getitem__, n, np.array([0.0, *(float(rng.randrange(6)) for _ in range(n - 1)), 0.0])


def splits(loads: LoadsFrom, n: int, cuts: int, prices: np.ndarray) -> Iterator[tuple[float, float, tuple[int, ...]]]:
    """Heaviest load, price and cuts of every possible split, from the definition."""
    for chosen in itertools.combinations(range(1, n), cuts):
        ends = [0, *chosen, n]
        segments = list(itertools.pairwise(ends))
        if all(j - i <= len(loads(i)) for i, j in segments):
            load = max(float(loads(i)[j - i - 1]) for i, j in segments)
            if math.isfinite(load):
                yield load, float(sum(prices[c] for c in chosen)), chosen


@pytest.mark.parametrize("block", range(20))
def test_every_program_finds_the_best_of_all(block: int) -> None:
    for seed in range(block * 50, block * 50 + 50):
        loads, n, prices = instance(seed)
        found = lightest(loads, n, 6)
        assert len(found) == 7
        for k in range(7):
            every = list(splits(loads, n, k, prices))
            least = min((load for load, _, _ in every), default=math.inf)
            assert found[k].value == least, (seed, k)
            if every:
                assert heaviest(loads, n, found[k].cuts) == least
                assert found[k].cuts[-1:] == max(c[-1:] for load, _, c in every if load == least)
            limit = random.Random(seed + k).randrange(12)
            affordable = [(price, c) for load, price, c in every if load <= limit]
            split = cheapest(loads, n, k, prices, limit)
            assert split.value == min((price for price, _ in affordable), default=math.inf)
            if affordable:
                assert split.cuts in [c for price, c in affordable if price == split.value]
            split = best(loads, n, k, prices, least)
            assert split.value == min((load + price for load, price, _ in every), default=math.inf)
            assert not every or split.cuts in [c for load, price, c in every if load + price == split.value]


def test_the_instances_have_everything() -> None:
    """The test above would be empty if no split were impossible, or all prices equal."""
    counts = [len(list(splits(*instance(seed)[:2], 3, instance(seed)[2]))) for seed in range(1000)]
    assert sum(c == 0 for c in counts) > 50
    assert sum(c > 10 for c in counts) > 100
    differ = 0
    for seed in range(300):
        loads, n, prices = instance(seed)
        together = best(loads, n, 2, prices, 0.0)
        differ += together.cuts != lightest(loads, n, 2)[2].cuts and together.value < math.inf
    assert differ > 50


def test_equal_splits_are_cut_late() -> None:
    loads = lambda i: np.ones(5 - i)  # noqa: E731
    assert lightest(loads, 5, 2)[2].cuts == (3, 4)
    assert cheapest(loads, 5, 2, np.zeros(6)).cuts == (3, 4)


def test_torch_is_not_needed() -> None:
    assert "torch" not in vars(chain)


def test_machines_of_other_speeds() -> None:
    """The segment of a machine at half speed counts twice."""
    sums = np.concatenate([[0.0], np.cumsum([3.0, 1, 1, 1, 1, 1, 1, 1, 1, 1])])
    prices = np.array([0.0, 2, 0, 1, 0, 3, 0, 0, 1, 0, 0])

    def loads_from(i: int) -> np.ndarray:
        return sums[i + 1 :] - sums[i]

    for speeds in itertools.product((0.5, 1.0, 3.0), repeat=3):
        values = [
            (
                max(
                    (sums[b] - sums[a]) / s
                    for (a, b), s in zip(itertools.pairwise((0, *cuts, 10)), speeds, strict=True)
                ),
                cuts,
            )
            for cuts in itertools.combinations(range(1, 10), 2)
        ]
        floor = lightest(loads_from, 10, 2, speeds)[2].value
        assert floor == min(values)[0]
        wanted = min(load + sum(prices[c] for c in cuts) for load, cuts in values)
        assert best(loads_from, 10, 2, prices, floor, speeds).value == wanted
