"""Where there are too many down-sets: the result is valid, and bounded."""

import importlib

import pytest
from random_graphs import OBJECTIVES, check, layered, random_graph

from dni_fx.partition.split import partition

MODULE = importlib.import_module("dni_fx.partition.split")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_bounded_method_is_valid_and_bounds_the_optimum(objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    met = 0
    for seed in range(150):
        graph, count, groups = random_graph(seed)
        best = partition(graph, count, objective=objective, together=groups)
        with monkeypatch.context() as patch:
            patch.setattr(MODULE, "CAP", 0)
            found = partition(graph, count, objective=objective, together=groups)
        check(graph, found, count, objective, groups)
        assert found.lower_bound <= best.load * (1 + 1e-9)
        assert best.load <= found.load * (1 + 1e-9)
        met += found.load <= best.load * (1 + 1e-9)
    assert 0.9 * 150 < met < 150


def test_what_the_lattice_gives_up_on_is_bounded() -> None:
    graph = layered(300, 12, 0)
    for objective in OBJECTIVES:
        found = partition(graph, 4, objective=objective)
        check(graph, found, 4, objective)
        assert not found.optimal
        assert found.load < found.lower_bound * 1.5
        assert found == partition(graph, 4, objective=objective)
