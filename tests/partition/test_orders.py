"""Splits along one order of the nodes, against every split along it."""

import itertools
from typing import Any

import numpy as np
import pytest
from random_graphs import OBJECTIVES, random_graph, workload

from dni_fx.partition.orders import orders, split_along_order


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_along_an_order_no_split_is_lighter(objective: Any) -> None:
    for seed in range(100):
        graph, count, _ = random_graph(seed)
        work = workload(graph)
        n = len(work.weight)
        for order in orders(work) if work.total else ():
            count = min(count, n)
            found = split_along_order(work, order, count, objective, work.total / count)
            place = np.argsort(order)
            cuts = itertools.combinations_with_replacement(range(1, n + 1), count - 1)
            every = [np.searchsorted(ends, place, side="right") for ends in cuts]
            heaviest = [_nonempty(work, label, objective).max() for label in every]
            assert _nonempty(work, found, objective).max() == pytest.approx(min(heaviest), rel=1e-9), seed


def _nonempty(work: Any, label: np.ndarray, objective: Any) -> np.ndarray:
    label = np.unique(label, return_inverse=True)[1]
    return work.loads_of(label, int(label.max()) + 1, objective)
