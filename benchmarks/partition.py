"""Splits of published workloads: how heavy, whether proven, how fast; beside simpler ways to split; and larger graphs.

    python benchmarks/partition.py            # writes benchmarks/results/partition.md; --largest N for less

The four workloads are those published with Tarnawski et al., "Efficient Algorithms for Device Placement of DNN Graph
Operators" (NeurIPS 2020); they are looked for in ../shared/data/partition, else in $DNI_FX_DATA/partition. Every split
is scored by the same load: the weights of the heaviest segment, and what enters and what leaves it.
"""

import argparse
import json
import os
import random
import time
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np

from dni_fx.partition.instance import Instance
from dni_fx.partition.lattice import Lattice
from dni_fx.partition.orders import split_along_order
from dni_fx.partition.solve import CAP
from dni_fx.partition.split import Partition, loads, partition
from dni_fx.partition.workload import Workload

RESULTS = Path(__file__).parent / "results" / "partition.md"
Graph = Any  # networkx.DiGraph
PUBLISHED = {  # least heaviest load for 2, 4 and 6 segments, as their dynamic program finds it, and its seconds
    "bert24": ("47.4790", "24.9169", "17.7899", "0.01"),
    "resnet50": ("101.2814", "50.9899", "34.2229", "0.1"),
    "gnmt": ("93.1943", "47.1607", "32.9107", "12.5"),
    "inceptionv3": ("none in 60 s", "none in 60 s", "none in 60 s", "over 60"),
}


def published(name: str) -> Graph:
    folders = [Path(__file__).parents[2] / "shared" / "data", Path(os.environ.get("DNI_FX_DATA", "data"))]
    files = [folder / "partition" / f"{name}_inference.json" for folder in folders]
    data = json.loads(next(file for file in files if file.is_file()).read_text(encoding="utf-8"))
    graph: Graph = nx.DiGraph()
    graph.add_nodes_from((node["id"], {"weight": node["fpgaLatency"]}) for node in data["nodes"])
    for edge in data["edges"]:
        graph.add_edge(edge["sourceId"], edge["destId"])
        graph.nodes[edge["sourceId"]]["transfer"] = edge["cost"]
    return graph


def in_order(graph: Graph) -> list[Any]:
    """The file's order, as far as it is a topological one."""
    place = {node: i for i, node in enumerate(graph)}
    return list(nx.lexicographical_topological_sort(graph, key=place.__getitem__))


def cut(order: list[Any], ends: list[int]) -> list[set[Any]]:
    """The intervals of an order that end at these places, but for empty ones."""
    return [set(order[i:j]) for i, j in pairwise([0, *ends, len(order)]) if i < j]


def best_of_one_order(graph: Graph, count: int) -> list[set[Any]]:
    """What a partitioner finds that cuts the order that it was given, as well as that can be done."""
    order = in_order(graph)
    place = {node: i for i, node in enumerate(order)}
    uses = [(i, place[user]) for i, node in enumerate(order) for user in graph.successors(node)]
    work = Workload(
        np.array([graph.nodes[node].get("weight", 0.0) for node in order]),
        tuple(tuple(place[source] for source in graph.predecessors(node)) for node in order),
        np.arange(len(order)),
        np.array([graph.nodes[node].get("transfer", 0.0) for node in order]),
        np.array([output for output, _ in uses]),
        np.array([user for _, user in uses]),
    )
    label = split_along_order(work, np.arange(len(order)), count, "throughput", work.total / count)
    return cut(order, [int((label < k).sum()) for k in range(1, count)])


def equal_weights(graph: Graph, count: int) -> list[set[Any]]:
    """The order cut wherever another share of the total weight is reached."""
    order = in_order(graph)
    below = np.cumsum([graph.nodes[node].get("weight", 0.0) for node in order])
    return cut(order, [int(np.searchsorted(below, below[-1] * k / count)) + 1 for k in range(1, count)])


def block_partition(graph: Graph, count: int) -> list[set[Any]]:
    """Blocks that differ by the largest weight at most: Barany & Grinberg, "Block Partitions of Sequences" (2013).

    As torchgpipe.balance uses it: weights scaled to [0, 1], at first blocks of equally many nodes. An element next to
    the lightest block moves into it, from the side of the heaviest, until they are close.
    """
    order = in_order(graph)
    weights = np.array([graph.nodes[node].get("weight", 0.0) for node in order])
    below = np.concatenate([[0.0], np.cumsum((weights - weights.min()) / np.ptp(weights))])
    ends = [len(order) // count * k for k in range(1, count)]

    def sizes() -> Any:
        return np.diff(below[[0, *ends, len(order)]])

    while True:
        heaviest = int(sizes().argmax())
        largest = sizes()[heaviest]
        giver = -1
        while giver != heaviest:
            lightest = int(sizes().argmin())
            if largest <= sizes()[lightest] + 1:
                return cut(order, ends)
            right = heaviest > lightest
            giver = lightest + 1 if right else lightest - 1
            ends[min(lightest, giver)] += 1 if right else -1


def timed(function: Callable[[], Partition], runs: int = 3) -> tuple[float, Partition]:
    best = float("inf")
    for _ in range(runs):
        start = time.perf_counter()
        result = function()
        best = min(best, time.perf_counter() - start)
    return best, result


def looked_at(graph: Graph, count: int) -> int:
    """Down-sets in the windows of the last search."""
    work = Instance.of(graph, "weight", "transfer").contract(())[0].workload
    lattice = Lattice(work, count, "throughput", CAP)
    lattice.lightest(max(work.total / count, float(work.weight.max())), work.total)
    return lattice.seen


def workloads() -> Iterator[str]:
    yield "| workload | segments | load | lower bound | proven | seconds | down-sets looked at | published | seconds |"
    yield f"|{'---|' * 9}"
    for name, known in PUBLISHED.items():
        graph = published(name)
        for i, count in enumerate((2, 4, 6)):
            seconds, found = timed(lambda graph=graph, count=count: partition(graph, count))
            proven = "yes" if found.optimal else "no"
            yield (
                f"| {name} | {count} | {found.load:.4f} | {found.lower_bound:.4f} | {proven} | {seconds:.4f} | "
                f"{looked_at(graph, count)} | {known[i]} | {known[3]} |"
            )


def beside() -> Iterator[str]:
    ways = {"one order": best_of_one_order, "block partition": block_partition, "equal weights": equal_weights}
    yield f"| workload | segments | dni_fx | {' | '.join(ways)} |"
    yield f"|{'---|' * (3 + len(ways))}"
    for name in PUBLISHED:
        graph = published(name)
        for count in (2, 3, 4, 6, 8):
            ours = partition(graph, count).load
            others = [max(loads(graph, way(graph, count))) for way in ways.values()]
            assert all(ours <= other * (1 + 1e-9) for other in others), (name, count, ours, others)
            shown = " | ".join(f"{other:.4f} (+{100 * (other / ours - 1):.2f} %)" for other in others)
            yield f"| {name} | {count} | {ours:.4f} | {shown} |"


def weighted(graph: Graph, seed: int) -> Graph:
    rng = random.Random(seed)
    for node in graph:
        graph.nodes[node].update(weight=rng.choice((0.0, 10 * rng.random())), transfer=rng.random())
    return graph


def chain(nodes: int) -> Graph:
    return weighted(nx.path_graph(nodes, create_using=nx.DiGraph), 0)


def blocks(nodes: int) -> Graph:
    """Ten nodes a block: three branches, a concatenation, a sum with what went in."""
    inside = [(0, 1), (0, 2), (0, 3), (1, 4), (2, 5), (5, 6), (3, 7), (7, 8), (4, 8), (6, 8), (8, 9), (0, 9), (9, 10)]
    graph: Graph = nx.DiGraph()
    for start in range(0, nodes, 10):
        graph.add_edges_from((start + a, start + b) for a, b in inside)
    return weighted(graph, 0)


def layers(nodes: int) -> Graph:
    """Layers of eight nodes, each with about two of those before: nowhere narrow, and too many down-sets."""
    rng = random.Random(0)
    graph: Graph = nx.DiGraph()
    graph.add_nodes_from(range(nodes))
    for node in range(8, nodes):
        graph.add_edges_from((source, node) for source in rng.sample(range(node // 8 * 8 - 8, node // 8 * 8), 2))
    return weighted(graph, 0)


def sizes(largest: int) -> Iterator[str]:
    yield "| graph | nodes | segments | seconds | peak MiB | proven | load / lower bound |"
    yield f"|{'---|' * 7}"
    for make in (chain, blocks, layers):
        for nodes in (n for n in (100, 300, 1_000, 3_000, 10_000, 20_000) if n <= largest):
            graph = make(nodes)
            for count in (2, 16):
                seconds, found = timed(lambda graph=graph, count=count: partition(graph, count), 1)
                tracemalloc.start()
                partition(graph, count)
                peak = tracemalloc.get_traced_memory()[1] / 2**20
                tracemalloc.stop()
                yield (
                    f"| {make.__name__} | {len(graph)} | {count} | {seconds:.3f} | {peak:.1f} | "
                    f"{'yes' if found.optimal else 'no'} | {found.load / found.lower_bound:.4f} |"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=20_000, help="nodes of the largest graph")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    parts: list[tuple[str, str, Iterator[str]]] = [
        (
            "Published workloads",
            "Seconds: the best of three, networkx graph to segments, in Python; the last column is what the published "
            "C++ program needs. Down-sets: in the windows of the lattice of the last search.",
            workloads(),
        ),
        (
            "Beside simpler ways",
            "The heaviest segment's load. One order: the best that can be done with the intervals of the file's "
            "topological order. Block partition: the algorithm of torchgpipe.balance. Equal weights: the order cut at "
            "equal shares of the total. The script fails if ours is heavier.",
            beside(),
        ),
        (
            "Size",
            "A chain; blocks of ten nodes with three branches and a skip; layers of eight nodes without a narrow "
            "place, for which nothing is proven and the bound is the last that was. Peak: of Python and numpy.",
            sizes(arguments.largest),
        ),
    ]
    lines = ["# Partitioner", "", f"`python benchmarks/partition.py`, numpy {np.__version__}.", ""]
    for title, text, rows in parts:
        lines += [f"## {title}", "", text, ""]
        for row in rows:
            lines.append(row)
            print(row, flush=True)
            arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
        lines.append("")
    arguments.output.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
