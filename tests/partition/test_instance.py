"""Numbers that a person gives to `partition`, read and refused."""

import math
from typing import Any

import networkx as nx
import pytest

from dni_fx.errors import DniFxError
from dni_fx.partition.instance import Instance, checked_budget, checked_objective, checked_segments


def diamond() -> "nx.DiGraph[str]":
    graph: nx.DiGraph[str] = nx.DiGraph([("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")])
    nx.set_node_attributes(graph, 3, "weight")
    graph.nodes["a"]["transfer"] = 1e9
    return graph


def test_attributes_are_read_in_the_order_of_the_graph() -> None:
    instance = Instance.of(diamond(), "weight", "transfer")
    assert instance.nodes == ["a", "b", "c", "d"] and instance.weights == [3.0] * 4
    assert instance.transfers == [1e9, 0.0, 0.0, 0.0]
    assert instance.users == {0: [1, 2], 1: [3], 2: [3], 3: []}


def test_numbers_are_scaled_by_a_power_of_two() -> None:
    contraction, unit = Instance.of(diamond(), "weight", "transfer").contract(())
    assert unit == 16.0 and contraction.workload.total * unit == 12.0
    assert contraction.workload.cost.max() * unit == 4 * 12  # a best split never moves more


def test_nodes_between_two_that_stay_together_join_them() -> None:
    contraction, _ = Instance.of(diamond(), "weight", "transfer").contract([{"a", "d"}])
    assert contraction.workload.weight.tolist() == [12 / 16]


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (checked_segments, (3, 3), 0),
        (checked_segments, (True, 1), 2.0),
        (checked_objective, ("memory", "memory"), "latency"),
        (checked_budget, (None, math.inf), -1),
        (checked_budget, ("2", 2.0), math.nan),
    ],
)
def test_arguments(check: Any, good: tuple[Any, Any], bad: Any) -> None:
    assert check(good[0]) == good[1]
    with pytest.raises(DniFxError):
        check(bad)
