"""Random graphs for the partitioner, every split of them, and what holds for each result."""

import random
from typing import Any

import networkx as nx
import numpy as np

from dni_fx.partition.instance import Instance
from dni_fx.partition.split import Partition, loads

OBJECTIVES = ("throughput", "memory")


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


def workload(graph: "nx.DiGraph[Any]") -> Any:
    return Instance.of(graph, "weight", "transfer").contract(())[0].workload


def layered(nodes: int, width: int, seed: int) -> "nx.DiGraph[int]":
    """Too many down-sets, and no place where it is narrow."""
    rng = random.Random(seed)
    graph: nx.DiGraph[int] = nx.DiGraph()
    for i in range(nodes):
        graph.add_node(i, weight=rng.random() * 10, transfer=rng.random() * 5)
        first = (i // width - 1) * width
        graph.add_edges_from((first + j, i) for j in range(width) if first >= 0 and rng.random() < 0.2)
    return graph
