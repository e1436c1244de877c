"""The partitioner against every split there is, and against published optima."""

import random
from typing import Any

import networkx as nx
import numpy as np
import pytest

from dni_fx.errors import DniFxError
from dni_fx.partition import Partition, loads, partition

OBJECTIVES = ("throughput", "memory", "balanced")
PUBLISHED = {
    "bert24": {2: 47.4790, 4: 24.9169, 6: 17.7899},
    "resnet50": {2: 101.2814, 4: 50.9899, 6: 34.2229},
    "gnmt": {2: 93.1943, 4: 47.1607, 6: 32.9107},
}


def random_graph(seed: int) -> tuple["nx.DiGraph[str]", int, list[list[str]]]:
    """A DAG with at most 12 nodes and few enough splits to look at all; how many segments; what stays together."""
    rng = random.Random(seed)
    while True:
        n, count = rng.randint(1, 12), rng.randint(1, 5)
        graph: nx.DiGraph[str] = nx.DiGraph()
        names = [f"n{i}" for i in range(n)]
        graph.add_nodes_from(rng.sample(names, n))  # most orders are not topological
        density = rng.choice((0.1, 0.2, 0.3, 0.5, 0.9))
        reach = rng.choice((1, 2, 3, n))
        graph.add_edges_from(
            (names[i], names[j]) for j in range(n) for i in range(max(0, j - reach), j) if rng.random() < density
        )
        zero = rng.choice((0.0, 0.3, 0.6))
        for name in names:
            whole = rng.random() < 0.8
            for attribute, largest in (("weight", 9), ("transfer", rng.choice((2, 6, 20)))):
                number = float(rng.randint(1, largest)) if whole else rng.random() * largest
                if rng.random() >= zero:
                    graph.nodes[name][attribute] = number
        groups = [rng.sample(names, min(n, rng.randint(1, 3))) for _ in range(rng.choice((0, 0, 1, 2)))]
        if len(labels(graph, count, groups, most=20_000)) < 20_000:
            return graph, count, groups


def labels(graph: "nx.DiGraph[str]", count: int, groups: list[list[str]], most: int = 1 << 30) -> np.ndarray:
    """All splits into at most so many ordered convex segments, none empty: the segment of each node."""
    rows = np.zeros((1, 0), dtype=int)
    order = list(nx.topological_sort(graph))
    for i, name in enumerate(order):
        least = np.max([rows[:, order.index(p)] for p in graph.predecessors(name)] or [0 * rows.sum(axis=1)], axis=0)
        new = [np.column_stack([rows[least <= k], np.full((least <= k).sum(), k)]) for k in range(count)]
        rows = np.concatenate(new)
        for group in groups:
            here = [order.index(member) for member in group if member in order[: i + 1]]
            rows = rows[(rows[:, here] == rows[:, here[:1]]).all(axis=1)]
        if len(rows) >= most:
            break
    else:
        used = [(rows == k).any(axis=1) for k in range(count)]
        for k in range(1, count):
            rows, used = rows[used[k - 1] | ~used[k]], [u[used[k - 1] | ~used[k]] for u in used]
    return rows


def scores(graph: "nx.DiGraph[str]", rows: np.ndarray, count: int, objective: str) -> tuple[np.ndarray, np.ndarray]:
    """The load of each segment of each split, and what crosses cuts: from the definitions."""
    order = list(nx.topological_sort(graph))
    result = np.zeros((len(rows), count))
    total = np.zeros(len(rows))
    for i, name in enumerate(order):
        weight, transfer = (graph.nodes[name].get(a, 0) for a in ("weight", "transfer"))
        made = rows[:, i]
        users = rows[:, [order.index(user) for user in graph.successors(name)]]
        for s in range(count):
            exists = (rows == s).any(axis=1)
            result[:, s] += weight * (made == s)
            leaves = (made == s) & (users > s).any(axis=1)
            enters = (made < s) & (users == s).any(axis=1)
            passes = (made < s) & (users > s).any(axis=1)
            if objective == "throughput":
                result[:, s] += transfer * (leaves * 1.0 + enters)
            if objective == "memory":
                result[:, s] += transfer * ((leaves | enters | passes) & exists)
            total += transfer * ((made <= s) & (users > s).any(axis=1))
    return result, total


def check(graph: "nx.DiGraph[Any]", found: Partition, count: int, objective: str, groups: Any = ()) -> None:
    """What holds for every result."""
    assert 1 <= len(found.segments) <= count
    assert all(found.segments)
    place = {node: i for i, segment in enumerate(found.segments) for node in segment}
    assert place.keys() == set(graph)
    assert sum(map(len, found.segments)) == len(graph)
    assert all(place[a] <= place[b] for a, b in graph.edges)
    assert all(len({place[member] for member in group}) <= 1 for group in groups)
    assert found.loads == loads(graph, found.segments, objective=objective)
    assert found.load == max(found.loads)
    assert found.optimal == (found.lower_bound == found.load)
    assert found.lower_bound <= found.load


@pytest.mark.parametrize("block", range(20))
def test_no_split_of_any_is_lighter(block: int) -> None:
    for seed in range(block * 60, block * 60 + 60):
        graph, count, groups = random_graph(seed)
        rows = labels(graph, count, groups)
        for objective in OBJECTIVES:
            each, crossing = scores(graph, rows, count, objective)
            least = each.max(axis=1).min()
            found = partition(graph, count, objective=objective, together=groups)
            check(graph, found, count, objective, groups)
            assert found.optimal
            assert found.load == pytest.approx(least, rel=1e-9, abs=1e-12), (seed, objective)
            if objective == "balanced":
                equal = each.max(axis=1) <= least * (1 + 1e-12)
                assert _crossing(graph, found) == pytest.approx(crossing[equal].min(), abs=1e-9), seed
            _within_budget(graph, count, groups, objective, each, rows, seed)


def _crossing(graph: "nx.DiGraph[str]", found: Partition) -> float:
    place = {node: i for i, segment in enumerate(found.segments) for node in segment}
    spans = {node: max(place[n] for n in (node, *graph.successors(node))) - place[node] for node in graph}
    return sum(spans[node] * graph.nodes[node].get("transfer", 0) for node in graph)


def _within_budget(graph: Any, count: int, groups: Any, objective: str, each: Any, rows: Any, seed: int) -> None:
    rng = random.Random(seed)
    heaviest = each.max(axis=1)
    budget = rng.choice(heaviest) if rng.random() < 0.7 else heaviest.min() * rng.choice((0.5, 0.99, 1.2))
    if (heaviest <= budget).any():
        fewest = rows[heaviest <= budget].max(axis=1).min() + 1
        found = partition(graph, count, objective=objective, together=groups, budget=budget)
        check(graph, found, fewest, objective, groups)
        assert len(found.segments) == fewest
        assert found.load == pytest.approx(heaviest[rows.max(axis=1) < fewest].min())
    elif budget < heaviest.min() * (1 - 1e-9):
        with pytest.raises(DniFxError, match="budget") as error:
            partition(graph, count, objective=objective, together=groups, budget=budget)
        assert f"{heaviest.min():g}" in str(error.value)
        assert f"{budget:g}" in str(error.value)
