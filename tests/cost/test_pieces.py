"""The pieces of a segment that the backward pass computes again."""

import itertools
import random
from typing import Any

import networkx as nx
import pytest
from flows import add, change

from dni_fx.cost import pieces as choosing
from dni_fx.cost.memory import Memory
from dni_fx.cost.pieces import PieceFinder
from dni_fx.partition.flow_node import flow_node


def chain(count: int, seed: int = 0) -> "nx.DiGraph[str]":
    """Nodes in a row, each of which keeps some bytes, and hands a few on; then the output."""
    rng = random.Random(seed)
    flow: nx.DiGraph[str] = nx.DiGraph(largest=0)
    for i in range(count):
        saves = {i: rng.randrange(4, 9), 1000 + i: rng.randrange(0, 90)}
        sources = (f"n{i - 1}",) if i else ()
        add(flow, f"n{i}", sources, parameters=1, forward=1, owns={i: saves[i]}, saves=saves, bytes=saves[i])
    add(flow, "output", (f"n{count - 1}",), owns={}, storages=frozenset(), parameters=1)
    return flow


def saves_and_outputs(flow: "nx.DiGraph[str]") -> tuple[list[int], list[int]]:
    """The bytes that autograd keeps for each node, and the bytes of its value."""
    nodes = [flow_node(flow, name) for name in flow]
    return [sum(node.saves.values()) for node in nodes], [node.bytes for node in nodes]


def best_of_all(flow: "nx.DiGraph[str]", end: int, *, keep_last: bool) -> float:
    """The least bytes at once: what stays of lower stretches, and the largest stretch, over all ways to divide."""
    saves, outputs = saves_and_outputs(flow)
    least = float("inf")
    for count in range(end):
        for inner in itertools.combinations(range(1, end), count):
            ends = [0, *inner, end]
            stretches = list(itertools.pairwise(ends))
            size = max(sum(saves[i:j]) for i, j in stretches)
            stays = sum(outputs[j - 1] for _, j in stretches[: len(stretches) - keep_last])
            least = min(least, stays + size)
    return least


@pytest.mark.parametrize("keep_last", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_no_division_takes_much_less(seed: int, keep_last: bool) -> None:
    flow, end = chain(9, seed), 9
    found = PieceFinder(flow, Memory(flow)).find(0, end, keep_last=keep_last)
    saves, outputs = saves_and_outputs(flow)
    in_pieces = {i for first, last in found for i in range(first, last + 1)}
    stays = sum(outputs[last - 1] for _, last in found)
    sizes = [sum(saves[first - 1 : last]) for first, last in found]
    rest = sum(saves[i - 1] for i in range(1, end + 1) if i not in in_pieces)
    took = stays + max([*sizes, rest]) if keep_last else stays + rest + max(sizes)
    assert took <= 1.15 * best_of_all(flow, end, keep_last=keep_last)
    assert all(one[1] < other[0] for one, other in itertools.pairwise(found))


def test_the_search_keeps_to_its_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long segment is divided at a few of its places."""
    monkeypatch.setattr(choosing, "_MOST_PLACES", 8)
    flow = chain(100)
    found = PieceFinder(flow, Memory(flow)).find(0, 100, keep_last=False)
    assert 3 < len(found) <= 9 and found[-1][1] == 100


def fitting(**changes: dict[str, Any]) -> list[int]:
    """The numbers of the nodes in pieces, in a chain of eight where some nodes are others."""
    flow = chain(8)
    for name, given in changes.items():
        change(flow, name, **given)
    found = PieceFinder(flow, Memory(flow)).find(0, 8, keep_last=False)
    return [i for first, last in found for i in range(first, last + 1)]


def test_nodes_that_cannot_run_twice_are_kept() -> None:
    everything = list(range(1, 9))
    assert fitting() == everything
    assert 4 not in fitting(n3={"obstacle": "an autocast block is open there"})
    # Node 3 has storage 99 from outside of the graph; node 4 writes to it, or reads it.
    outside = {"storages": frozenset({99}), "owns": {}, "saves": {}}
    assert fitting(n2=outside) == everything
    assert 4 not in fitting(n2=outside, n3={"mutates": frozenset({99})})
    assert 4 not in fitting(n2=outside, n7={"mutates": frozenset({99})})
    counter = {"mutates": frozenset({99}), "kind": "add_: int64", "carries_gradient": False}
    assert 4 in fitting(n2=outside | {"carries_gradient": False}, n3=counter)


def test_no_piece_begins_where_a_later_node_writes_to_what_crosses() -> None:
    flow = chain(8)
    memory = Memory(flow)
    change(flow, "n4", mutates=frozenset({3}))
    found = PieceFinder(flow, memory).find(0, 8, keep_last=False)
    assert all(last != 4 for _, last in found) and found
    in_pieces = [i for first, last in PieceFinder(flow, memory).find(4, 8, keep_last=False) for i in (first, last)]
    assert in_pieces and in_pieces[0] > 5  # node 5 writes to a value that crosses the cut
