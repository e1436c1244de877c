"""The partitioner against the naive way, on random graphs of plain numbers: no torch here."""

import itertools
import random
from typing import Any

import networkx as nx
import pytest

from dni_fx import positions
from dni_fx.errors import DniFxError, NoLegalCutError
from dni_fx.positions import Position, balanced, default_segments, snap

Flow = Any


def node(flow: Flow, name: str, sources: tuple[str, ...] = (), **attributes: Any) -> None:
    plain: dict[str, Any] = {
        "weight": 1,
        "parameters": 0,
        "matrix": bool(attributes.get("parameters")),
        "crosses": True,
        "legal": True,
        "tuple": False,
        "size": 4,
        "kind": "a float32 tensor of shape [1]",
        "storages": frozenset({len(flow)}),
        "mutates": frozenset(),
    }
    flow.add_node(name, **plain | attributes)
    flow.add_edges_from((source, name) for source in sources)


def chain(*nodes: tuple[int, int, int]) -> Flow:
    """Nodes in a row, each given as (weight, parameters, size), between an input and an output."""
    flow: Flow = nx.DiGraph()
    node(flow, "x", crosses=False, weight=0)
    last = "x"
    for i, (weight, parameters, size) in enumerate(nodes):
        node(flow, f"n{i}", (last,), weight=weight, parameters=parameters, size=size)
        last = f"n{i}"
    node(flow, "output", (last,), crosses=False, weight=0, legal=False)
    return flow


def random_flow(rng: random.Random, count: int, *, clean: bool = False) -> Flow:
    """A DAG with skips, values without gradient, tuples, and views whose memory is written to.

    Args:
        clean: Every value carries gradient and may be cut.
    """
    flow: Flow = nx.DiGraph()
    vectors_only = rng.random()
    node(flow, "x", crosses=False, weight=0)
    for i in range(count):
        names = list(flow)
        sources = {names[-1] if rng.random() < 0.7 else rng.choice(names)} | {
            rng.choice(names) for _ in range(rng.randrange(3))
        }
        view = rng.random() < 0.3 and not clean
        storages = flow.nodes[rng.choice(sorted(sources))]["storages"] if view else frozenset({i + 1})
        if rng.random() < 0.05 and not clean:
            storages = storages | {rng.randrange(i + 1)}
        parameters = rng.choice([0, 0, 1, 2])
        node(
            flow,
            f"n{i}",
            tuple(sorted(sources)),
            weight=rng.randrange(20),
            parameters=parameters,
            matrix=vectors_only < 0.8 and parameters > 0 and rng.random() < 0.8,
            size=rng.randrange(1, 6),
            crosses=clean or rng.random() < 0.85,
            legal=clean or rng.random() < 0.9,
            storages=storages,
            mutates=storages if rng.random() < 0.2 and not clean else frozenset(),
        )
    node(flow, "output", (list(flow)[-1],), crosses=False, legal=False, weight=0)
    return flow


def naive_position(flow: Flow, index: int) -> tuple[list[str], int, bool]:
    """What crosses after node `index`, its bytes, and whether it is a legal cut; from the definitions."""
    names = list(flow)
    below, above = names[: index + 1], names[index + 1 :]
    used = [n for n in below if any(flow.has_edge(n, user) for user in above)]
    crossing = [n for n in used if flow.nodes[n]["crosses"]]
    legal = bool(crossing) and all(flow.nodes[n]["legal"] for n in crossing)
    for side in (below, above):
        legal = legal and any(flow.nodes[n]["parameters"] for n in side)
    for storage in {s for n in used for s in flow.nodes[n]["storages"]}:
        sharing = [n for n in used if storage in flow.nodes[n]["storages"]]
        written = any(storage in flow.nodes[n]["mutates"] for n in above)
        legal = legal and not (written and len(sharing) > 1)
    return crossing, sum(flow.nodes[n]["size"] for n in crossing), legal


@pytest.mark.parametrize("seed", range(300))
def test_positions_are_those_of_the_definition(seed: int) -> None:
    rng = random.Random(seed)
    flow = random_flow(rng, rng.randrange(1, 16))
    found = positions.find(flow)
    names = list(flow)
    assert [(p.index, p.after) for p in found] == list(enumerate(names[:-1]))
    for position in found:
        crossing, size, legal = naive_position(flow, position.index)
        assert sorted(position.crossing) == sorted(crossing), position
        assert list(position.crossing) == sorted(crossing, key=names.index), position
        assert position.bytes == size
        assert (position.obstacle == "") == legal, position


def test_the_random_graphs_have_everything() -> None:
    """The test above would be empty if its graphs were."""
    found = [p for seed in range(300) for p in positions.find(random_flow(random.Random(seed), 12))]
    for part in ("nothing that", "is not one", "memory", "parameter is below", "parameter is above"):
        assert any(part in p.obstacle for p in found), part
    assert sum(not p.obstacle for p in found) > 100
    assert max(len(p.crossing) for p in found if not p.obstacle) > 1


# -------------------------------------------------------------------------------------------------- balanced
def heaviest(flow: Flow, cuts: list[Position]) -> float:
    weights = [flow.nodes[n]["weight"] for n in flow]
    ends = [-1, *(p.index for p in cuts), len(weights) - 1]
    return max(sum(weights[i + 1 : j + 1]) for i, j in itertools.pairwise(ends))


def layers(flow: Flow) -> list[bool]:
    """Which nodes are layers: those with a matrix, and where no node has one, those with any parameter."""
    kind = "matrix" if any(flow.nodes[n]["matrix"] for n in flow) else "parameters"
    return [bool(flow.nodes[n][kind]) for n in flow]


def every_segment_has_a_layer(flow: Flow, cuts: list[Position]) -> bool:
    ends = [-1, *(p.index for p in cuts), len(flow) - 1]
    return all(any(layers(flow)[i + 1 : j + 1]) for i, j in itertools.pairwise(ends))


def legal_cuts(flow: Flow) -> list[Position]:
    return [p for p in positions.find(flow) if not p.obstacle and every_segment_has_a_layer(flow, [p])]


def exhaustive(flow: Flow, candidates: list[Position], segments: int) -> tuple[float, int] | None:
    """The least (heaviest segment, bytes crossing) of all choices of cuts."""
    choices = [list(c) for c in itertools.combinations(candidates, segments - 1)]
    legal = [c for c in choices if every_segment_has_a_layer(flow, c)]
    return min(((heaviest(flow, c), sum(p.bytes for p in c)) for c in legal), default=None)


def narrow_candidates(flow: Flow, width: int) -> list[Position]:
    """Between two layers the narrowest legal place, the last of equal ones; from the definition."""
    owned = list(itertools.accumulate(layers(flow)))
    legal = [p for p in legal_cuts(flow) if len(p.crossing) <= width]
    groups = itertools.groupby(legal, key=lambda p: owned[p.index])
    return [min(reversed(list(group)), key=lambda p: p.bytes) for _, group in groups]


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("seed", range(150))
def test_balanced_is_the_best_of_all(seed: int, clean: bool) -> None:
    flow = random_flow(random.Random(seed), 11, clean=clean)
    legal = legal_cuts(flow)
    most = max((k for k in range(1, 6) if k == 1 or exhaustive(flow, legal, k)), default=1)
    for segments in range(2, 6):
        if not legal:
            with pytest.raises(NoLegalCutError):
                balanced(flow, segments)
        elif segments > most:
            with pytest.raises(DniFxError, match=f"cannot make {segments} segments.* {most} at most"):
                balanced(flow, segments)
        else:
            cuts = balanced(flow, segments)
            assert len(cuts) == segments - 1
            assert [p.index for p in cuts] == sorted({p.index for p in cuts})
            assert all(not p.obstacle for p in cuts)
            widths = sorted({len(p.crossing) for p in legal})
            width = next(w for w in widths if exhaustive(flow, narrow_candidates(flow, w), segments))
            best = exhaustive(flow, narrow_candidates(flow, width), segments)
            assert (heaviest(flow, cuts), sum(p.bytes for p in cuts)) == best
            assert every_segment_has_a_layer(flow, cuts)


@pytest.mark.parametrize("seed", range(50))
def test_auto_never_fails_where_there_is_a_cut(seed: int) -> None:
    flow = random_flow(random.Random(1000 + seed), 14)
    if legal_cuts(flow):
        cuts = balanced(flow, None)
        assert 1 <= len(cuts) <= 3
        assert every_segment_has_a_layer(flow, cuts)
    else:
        with pytest.raises(NoLegalCutError):
            balanced(flow, None)


@pytest.mark.parametrize(
    ("count", "segments"), [(1, 2), (2, 2), (3, 2), (4, 2), (5, 2), (6, 3), (7, 3), (8, 4), (9, 4), (10, 4), (50, 4)]
)
def test_auto_segments(count: int, segments: int) -> None:
    flow = chain(*[(1, 2, 4)] * count)
    assert default_segments(flow) == segments
    if count > 1:
        assert len(balanced(flow, None)) == segments - 1


def test_auto_takes_fewer_where_there_are_fewer() -> None:
    flow = chain(*[(1, 1, 4)] * 8)
    for i in range(7):
        flow.nodes[f"n{i}"]["legal"] = i == 3
    assert [p.after for p in balanced(flow, None)] == ["n3"]


CHOICES = [
    # (weight, parameters, size) of each node, segments, the nodes that are cut after
    ([(5, 1, 4), (1, 1, 4), (1, 1, 4), (3, 1, 4)], 2, ["n0"]),
    ([(1, 1, 4), (1, 1, 4), (1, 1, 4), (3, 1, 4)], 2, ["n2"]),
    ([(1, 1, 4)] * 6, 3, ["n1", "n3"]),
    ([(9, 1, 8), (0, 0, 8), (0, 0, 4), (9, 1, 4)], 2, ["n2"]),  # after the pool, where fewest bytes cross
    ([(9, 1, 8), (0, 0, 8), (0, 0, 8), (9, 1, 4)], 2, ["n2"]),  # the last of equal ones
    ([(9, 1, 4), (0, 0, 8), (0, 0, 8), (9, 1, 4)], 2, ["n0"]),
    ([(0, 1, 4), (0, 1, 4), (0, 1, 4)], 2, ["n0"]),  # no weights at all
    ([(4, 1, 9), (0, 1, 2), (4, 1, 4)], 2, ["n1"]),  # equal weights: fewer bytes
]


@pytest.mark.parametrize(("nodes", "segments", "after"), CHOICES)
def test_choices(nodes: list[tuple[int, int, int]], segments: int, after: list[str]) -> None:
    assert [p.after for p in balanced(chain(*nodes), segments)] == after


def test_a_vector_is_no_layer_where_there_is_a_matrix() -> None:
    """Linear, norm, ReLU: the norm belongs to the layer below it."""
    flow = chain(*[(9, 2, 4), (1, 2, 4), (1, 0, 4)] * 2)
    flow.nodes["n1"]["matrix"] = flow.nodes["n4"]["matrix"] = False
    assert [p.after for p in balanced(flow, None)] == ["n2"]
    with pytest.raises(DniFxError, match="2 at most"):
        balanced(flow, 3)
    for name in flow:
        flow.nodes[name]["matrix"] = False
    assert len(balanced(flow, 4)) == 3


def test_narrow_cuts_come_first() -> None:
    """A skip over the middle: one tensor crosses outside it, two inside, however heavy the sides are."""
    flow: Flow = nx.DiGraph()
    node(flow, "x", crosses=False)
    node(flow, "a", ("x",), parameters=1, weight=1)
    node(flow, "b", ("a",), parameters=1, weight=9)
    node(flow, "c", ("b",), parameters=1, weight=9)
    node(flow, "add", ("a", "c"), weight=1)
    node(flow, "d", ("add",), parameters=1, weight=1)
    node(flow, "output", ("d",), crosses=False)
    assert [p.crossing for p in balanced(flow, 2)] == [("a",)]
    assert [p.crossing for p in balanced(flow, 3)] == [("a",), ("add",)]
    assert [p.crossing for p in balanced(flow, 4)] == [("a",), ("a", "b"), ("add",)]
    with pytest.raises(DniFxError, match="cannot make 5 segments: the model has legal cuts for 4 at most"):
        balanced(flow, 5)


def test_no_legal_cut() -> None:
    for nodes in ([(1, 1, 4)], [(1, 0, 4), (1, 0, 4)], [(1, 0, 4), (1, 1, 4), (1, 0, 4)]):
        flow = chain(*nodes)
        for segments in (None, 2, 7):
            with pytest.raises(NoLegalCutError, match="no legal cut") as caught:
                balanced(flow, segments)
            assert caught.value.exit_code == 1


def test_memory_that_is_written_above() -> None:
    """Two names of one memory may cross only where nobody writes to it any more."""

    def flow_with(mutates: frozenset[int]) -> Flow:
        flow: Flow = nx.DiGraph()
        node(flow, "x", crosses=False)
        node(flow, "a", ("x",), parameters=1, storages=frozenset({7}))
        node(flow, "view", ("a",), storages=frozenset({7}))
        node(flow, "write", ("view",), storages=frozenset({7}), mutates=mutates)
        node(flow, "b", ("write", "a"), parameters=1)
        node(flow, "output", ("b",), crosses=False)
        return flow

    assert [p.after for p in positions.find(flow_with(frozenset({7}))) if "share memory" in p.obstacle] == ["view"]
    assert not any("share memory" in p.obstacle for p in positions.find(flow_with(frozenset())))


# ------------------------------------------------------------------------------------------------------ snap
def test_snap_goes_past_what_is_taken_out_of_a_tuple() -> None:
    flow: Flow = nx.DiGraph()
    node(flow, "x", crosses=False)
    node(flow, "lstm", ("x",), parameters=1, legal=False, tuple=True)
    node(flow, "y", ("lstm",))
    node(flow, "state", ("lstm",), legal=False, tuple=True)
    node(flow, "h", ("state",))
    node(flow, "relu", ("y",))
    node(flow, "head", ("relu", "h"), parameters=1)
    node(flow, "output", ("head",), crosses=False)
    assert snap(flow, positions.find(flow), "lstm", "lstm").after == "h"
    assert snap(flow, positions.find(flow), "lstm", "lstm").crossing == ("y", "h")
    assert snap(flow, positions.find(flow), "relu", "relu").crossing == ("h", "relu")
    for name, text in [("x", "carries no gradient"), ("head", "no trainable parameter is above"), ("output", "comes")]:
        with pytest.raises(DniFxError, match=text) as caught:
            snap(flow, positions.find(flow), name, "as it was called")
        assert "'as it was called'" in str(caught.value)


def test_torch_is_not_needed() -> None:
    names = set(vars(positions))
    assert not names & {"torch", "fx", "nn"}
