"""Where a graph can be cut against the naive way, on random graphs of plain numbers: no torch here."""

import itertools
import random

import networkx as nx
import pytest
from flows import Flow, add, change
from seeds import seeds

from dni_fx.errors import DniFxError, NoLegalCutError
from dni_fx.partition import positions
from dni_fx.partition.flow_node import flow_node
from dni_fx.partition.positions import find_candidates, find_positions, position_after


def chain(*nodes: tuple[int, int]) -> Flow:
    """Nodes in a row, each given as (parameters, bytes), between an input and an output."""
    flow: Flow = nx.DiGraph()
    add(flow, "x", carries_gradient=False)
    last = "x"
    for i, (parameters, size) in enumerate(nodes):
        add(flow, f"n{i}", (last,), parameters=parameters, bytes=size)
        last = f"n{i}"
    add(flow, "output", (last,), carries_gradient=False, can_have_synthesizer=False)
    return flow


def random_flow(rng: random.Random, count: int, *, clean: bool = False) -> Flow:
    """A DAG with skips, values without gradient, tuples, and views whose memory is written to.

    Args:
        clean: Every value carries gradient and may be cut.
    """
    flow: Flow = nx.DiGraph()
    vectors_only = rng.random()
    add(flow, "x", carries_gradient=False)
    for i in range(count):
        names = list(flow)
        sources = {names[-1] if rng.random() < 0.7 else rng.choice(names)} | {
            rng.choice(names) for _ in range(rng.randrange(3))
        }
        view = rng.random() < 0.3 and not clean
        storages = flow_node(flow, rng.choice(sorted(sources))).storages if view else frozenset({i + 1})
        if rng.random() < 0.05 and not clean:
            storages = storages | {rng.randrange(i + 1)}
        parameters = rng.choice([0, 0, 1, 2])
        add(
            flow,
            f"n{i}",
            tuple(sorted(sources)),
            parameters=parameters,
            has_matrix=vectors_only < 0.8 and parameters > 0 and rng.random() < 0.8,
            bytes=rng.randrange(1, 6),
            carries_gradient=clean or rng.random() < 0.85,
            can_have_synthesizer=clean or rng.random() < 0.9,
            storages=storages,
            mutates=storages if rng.random() < 0.2 and not clean else frozenset(),
        )
    add(flow, "output", (list(flow)[-1],), carries_gradient=False, can_have_synthesizer=False)
    return flow


def naive_position(flow: Flow, index: int) -> tuple[list[str], int, bool]:
    """What crosses after node `index`, its bytes, and whether it is a legal cut; from the definitions."""
    names = list(flow)
    below, above = names[: index + 1], names[index + 1 :]
    used = [n for n in below if any(flow.has_edge(n, user) for user in above)]
    crossing = [n for n in used if flow_node(flow, n).carries_gradient]
    legal = bool(crossing) and all(flow_node(flow, n).can_have_synthesizer for n in crossing)
    for side in (below, above):
        legal = legal and any(flow_node(flow, n).parameters for n in side)
    for storage in {s for n in used for s in flow_node(flow, n).storages}:
        sharing = [n for n in used if storage in flow_node(flow, n).storages]
        written = any(storage in flow_node(flow, n).mutates for n in above)
        legal = legal and not (written and len(sharing) > 1)
    return crossing, sum(flow_node(flow, n).bytes for n in crossing), legal


@pytest.mark.parametrize("seed", seeds(100, 300))
def test_positions_are_those_of_the_definition(seed: int) -> None:
    rng = random.Random(seed)
    flow = random_flow(rng, rng.randrange(1, 16))
    found = find_positions(flow)
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
    found = [p for seed in range(300) for p in find_positions(random_flow(random.Random(seed), 12))]
    for part in ("nothing that", "is not one", "memory", "parameter is below", "parameter is above"):
        assert any(part in p.obstacle for p in found), part
    assert sum(not p.obstacle for p in found) > 100
    assert max(len(p.crossing) for p in found if not p.obstacle) > 1


# ------------------------------------------------------------------------------------------------ candidates
def layers(flow: Flow) -> list[bool]:
    """Which nodes are layers: those with a matrix, and where no node has one, those with any parameter."""
    nodes = [flow_node(flow, n) for n in flow]
    any_matrix = any(node.has_matrix for node in nodes)
    return [node.has_matrix if any_matrix else node.parameters > 0 for node in nodes]


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("seed", seeds(50, 150))
def test_candidates_are_the_narrowest_between_two_layers(seed: int, clean: bool) -> None:
    flow = random_flow(random.Random(seed), 11, clean=clean)
    owned = list(itertools.accumulate(layers(flow)))
    legal = [p for p in find_positions(flow) if not p.obstacle and 0 < owned[p.index] < owned[-1]]
    if not legal:
        with pytest.raises(NoLegalCutError):
            find_candidates(flow)
        return
    groups = itertools.groupby(legal, key=lambda p: owned[p.index])
    narrowest = [min(reversed(list(group)), key=lambda p: (len(p.crossing), p.bytes)) for _, group in groups]
    found = find_candidates(flow)
    assert [c.position for c in found] == narrowest
    assert [c.depth for c in found] == [owned[p.index] / owned[-1] for p in narrowest]


CHOICES = [
    # (parameters, bytes) of each node, the nodes that may be cut after
    ([(1, 8), (0, 8), (0, 4), (1, 4)], ["n2"]),  # after the pool, where fewest bytes cross
    ([(1, 8), (0, 8), (0, 8), (1, 4)], ["n2"]),  # the last of equal ones
    ([(1, 4), (0, 8), (0, 8), (1, 4)], ["n0"]),
    ([(1, 4), (1, 4), (1, 4)], ["n0", "n1"]),
]


@pytest.mark.parametrize(("nodes", "after"), CHOICES)
def test_choices(nodes: list[tuple[int, int]], after: list[str]) -> None:
    assert [c.position.after for c in find_candidates(chain(*nodes))] == after


def test_a_vector_is_no_layer_where_there_is_a_matrix() -> None:
    """Linear, norm, ReLU: the norm belongs to the layer below it."""
    flow = chain(*[(2, 4), (2, 4), (0, 4)] * 2)
    for name in ("n1", "n4"):
        change(flow, name, has_matrix=False)
    assert [(c.position.after, c.depth) for c in find_candidates(flow)] == [("n2", 0.5)]
    for name in flow:
        change(flow, name, has_matrix=False)
    assert [c.position.after for c in find_candidates(flow)] == ["n0", "n2", "n3"]


def test_one_tensor_is_narrower_than_two_small_ones() -> None:
    """What one tensor crosses dominates the outputs, whatever its size."""
    flow: Flow = nx.DiGraph()
    add(flow, "x", carries_gradient=False)
    add(flow, "a", ("x",), parameters=1, bytes=9)
    add(flow, "small", ("a",), bytes=1)
    add(flow, "smaller", ("a",), bytes=1)
    add(flow, "b", ("small", "smaller"), parameters=1)
    add(flow, "output", ("b",), carries_gradient=False)
    assert [c.position.crossing for c in find_candidates(flow)] == [("a",)]


def test_many_layers_are_taken_in_groups() -> None:
    found = find_candidates(chain(*[(1, 4)] * 1000), most=100)
    assert 95 <= len(found) <= 100
    gaps = [b.position.index - a.position.index for a, b in itertools.pairwise(found)]
    assert max(gaps) <= 20
    assert [c.depth for c in found] == sorted(c.depth for c in found)


def test_among() -> None:
    flow = chain(*[(1, 4)] * 5)
    assert [c.position.after for c in find_candidates(flow, {"n1", "n3", "nowhere"})] == ["n1", "n3"]
    assert len(find_candidates(flow, {"nowhere"})) == 4


def test_no_legal_cut() -> None:
    for nodes in ([(1, 4)], [(0, 4), (0, 4)], [(0, 4), (1, 4), (0, 4)]):
        flow = chain(*nodes)
        with pytest.raises(NoLegalCutError, match="no legal cut") as caught:
            find_candidates(flow)
        assert caught.value.exit_code == 1


def test_memory_that_is_written_above() -> None:
    """Two names of one memory may cross only after the last write to it."""

    def flow_with(mutates: frozenset[int]) -> Flow:
        flow: Flow = nx.DiGraph()
        add(flow, "x", carries_gradient=False)
        add(flow, "a", ("x",), parameters=1, storages=frozenset({7}))
        add(flow, "view", ("a",), storages=frozenset({7}))
        add(flow, "write", ("view",), storages=frozenset({7}), mutates=mutates)
        add(flow, "b", ("write", "a"), parameters=1)
        add(flow, "output", ("b",), carries_gradient=False)
        return flow

    assert [p.after for p in find_positions(flow_with(frozenset({7}))) if "share memory" in p.obstacle] == ["view"]
    assert not any("share memory" in p.obstacle for p in find_positions(flow_with(frozenset())))


def test_a_state_that_is_written_above() -> None:
    """The segment that makes a state returns it, so a later segment must not write to it."""
    flow: Flow = nx.DiGraph()
    add(flow, "x", carries_gradient=False)
    add(flow, "state", ("x",), parameters=1, storages=frozenset({7}), is_state=True)
    add(flow, "other", ("state",))
    add(flow, "write", ("state",), storages=frozenset({7}), mutates=frozenset({7}))
    add(flow, "b", ("write", "other"), parameters=1)
    add(flow, "output", ("b",), carries_gradient=False)
    found = {p.after: "writes to state" in p.obstacle for p in find_positions(flow)}
    assert found == {"x": False, "state": True, "other": True, "write": False, "b": False}


# ------------------------------------------------------------------------------------------------position_after
def test_snap_goes_past_what_is_taken_out_of_a_tuple() -> None:
    flow: Flow = nx.DiGraph()
    add(flow, "x", carries_gradient=False)
    add(flow, "lstm", ("x",), parameters=1, can_have_synthesizer=False, is_tuple=True)
    add(flow, "y", ("lstm",))
    add(flow, "state", ("lstm",), can_have_synthesizer=False, is_tuple=True)
    add(flow, "h", ("state",))
    add(flow, "relu", ("y",))
    add(flow, "head", ("relu", "h"), parameters=1)
    add(flow, "output", ("head",), carries_gradient=False)
    assert position_after(flow, find_positions(flow), "lstm", "lstm").after == "h"
    assert position_after(flow, find_positions(flow), "lstm", "lstm").crossing == ("y", "h")
    assert position_after(flow, find_positions(flow), "relu", "relu").crossing == ("h", "relu")
    for name, text in [("x", "carries no gradient"), ("head", "no trainable parameter is above"), ("output", "comes")]:
        with pytest.raises(DniFxError, match=text) as caught:
            position_after(flow, find_positions(flow), name, "as it was called")
        assert "'as it was called'" in str(caught.value)


def test_torch_is_not_needed() -> None:
    names = set(vars(positions))
    assert not names & {"torch", "fx", "nn"}
