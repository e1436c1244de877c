"""The route of an exit on graphs of plain numbers: by hand, and on random graphs what holds for every route."""

import random
from typing import Any

import networkx as nx
import pytest
from flows import Flow, add, change
from seeds import seeds

from dni_fx.partition.exits import Route, find_route, is_in_branch, next_places, places_above, with_writes
from dni_fx.partition.flow_node import flow_node
from dni_fx.partition.positions import Position, find_positions


def layer(flow: Flow, name: str, *sources: str, width: int = 8, cost: float = 1.0, **changes: Any) -> None:
    add(flow, name, sources, **{"forward": cost, "is_layer": True, "kind": f"layer: {width}"} | changes)


def total(flow: Flow, name: str, *sources: str, width: int = 8) -> None:
    add(flow, name, sources, forward=0.5, is_sum=True, kind=f"sum: {width}")


def after(flow: Flow, name: str) -> Position:
    """The position after a node."""
    return find_positions(flow)[list(flow).index(name)]


def route(flow: Flow, name: str, units: int | None = 0, ends: tuple[str, ...] = ("head",)) -> Route:
    found = find_route(flow, after(flow, name), ends, units)
    assert found is not None
    return found


def residual(blocks: int = 3) -> Flow:
    """Blocks b0, b1, ... of two layers and a sum s0, s1, ..., then a norm and a head."""
    flow: Flow = nx.DiGraph()
    layer(flow, "x")
    last = "x"
    for i in range(blocks):
        layer(flow, f"a{i}", last)
        layer(flow, f"b{i}", f"a{i}")
        total(flow, f"s{i}", last, f"b{i}")
        last = f"s{i}"
    layer(flow, "norm", last, is_layer=False)
    layer(flow, "head", "norm", width=3)
    return flow


def test_residual_branches_are_left_out_and_the_tail_is_kept() -> None:
    assert route(residual(), "s0") == Route(("norm", "head"), {"s2": "s1", "s1": "s0"}, 0)


def test_the_next_unit_is_the_next_residual_branch_whole() -> None:
    assert route(residual(), "s0", 1) == Route(("a1", "b1", "s1", "norm", "head"), {"s2": "s1"}, 1, ("a1", "b1", "s1"))
    assert route(residual(), "s0", 2).bypassed == {}
    assert route(residual(), "x", 2).nodes == ("a0", "b0", "s0", "a1", "b1", "s1", "norm", "head")


def test_where_some_units_mix_positions_the_next_of_these_run() -> None:
    flow = residual(4)
    for name in ("b1", "b3"):
        change(flow, name, mixes=True)
    found = route(flow, "x", 1)
    assert found.nodes == ("a1", "b1", "s1", "norm", "head") and found.units == 1
    assert found.bypassed == {"s3": "s2", "s2": "s1", "s0": "x"}
    assert route(flow, "x", 2).nodes == ("a1", "b1", "s1", "a3", "b3", "s3", "norm", "head")
    assert route(flow, "s1", 2).units == 1
    assert route(flow, "s3", 1).units == 1  # nothing mixes above: the head


def test_no_more_units_than_there_are() -> None:
    assert route(residual(), "s1", 5) == Route(("a2", "b2", "s2", "norm", "head"), {}, 2, ("a2", "b2", "s2", "head"))


def test_a_cut_in_a_branch_runs_its_rest() -> None:
    """Without it, the tensor in the branch would get no gradient."""
    assert route(residual(), "a1") == Route(("b1", "s1", "norm", "head"), {"s2": "s1"}, 0)


@pytest.mark.parametrize(("name", "expected"), [("x", False), ("a1", True), ("b1", True), ("s1", False)])
def test_whether_a_cut_is_in_a_branch(name: str, expected: bool) -> None:
    position = after(residual(), name)
    assert (
        is_in_branch(residual(), places_above(next_places(residual(), ["head"]), position.crossing), position)
        is expected
    )


def test_a_long_skip_does_not_take_the_place_of_all_between() -> None:
    flow = residual(2)
    total(flow, "far", "x", "s1")
    layer(flow, "last", "far")
    found = route(flow, "s0", ends=("last",))
    assert found.nodes == ("far", "last") and found.bypassed == {"s1": "s0"}


def test_a_term_that_costs_nothing_is_not_left_out() -> None:
    found = route(residual(), "b1")
    assert found.nodes == ("s1", "norm", "head") and "s1" not in found.bypassed


def test_a_shortcut_that_changes_the_shape_is_kept() -> None:
    flow: Flow = nx.DiGraph()
    layer(flow, "x")
    layer(flow, "a", "x", width=16, cost=9)
    layer(flow, "shortcut", "x", width=16)
    total(flow, "s", "a", "shortcut", width=16)
    layer(flow, "head", "s")
    assert route(flow, "x") == Route(("shortcut", "head"), {"s": "shortcut"}, 0)


def test_plain_layers_of_one_kind_are_jumped_over() -> None:
    flow: Flow = nx.DiGraph()
    layer(flow, "x", width=3)
    for i, width in enumerate((8, 8, 4, 4, 4)):
        layer(flow, f"l{i}", list(flow)[-1], width=width)
    layer(flow, "head", "l4", width=2)
    # Only the two changes of the width run: to 4, and to the width of the head.
    assert route(flow, "l0") == Route(("l2", "head"), {"l4": "l2", "l1": "l0"}, 0)
    assert route(flow, "l0", 1).nodes == ("l1", "l2", "head")
    assert route(flow, "l2", 1).nodes == ("l3", "head")


def test_nothing_of_the_tail_is_jumped_over() -> None:
    flow = residual(1)
    layer(flow, "more", "norm")  # of the kind of the norm
    layer(flow, "last", "more")
    assert route(flow, "x", ends=("last",)) == Route(("norm", "more", "last"), {"s0": "x"}, 0)


def encoder_decoder() -> Flow:
    """An encoder e0, e1 with sums t0, t1; a decoder that adds attention to the encoder: s = y + cross(y, t1)."""
    flow: Flow = nx.DiGraph()
    layer(flow, "x")
    add(flow, "y", carries_gradient=False)
    for i in range(2):
        layer(flow, f"e{i}", ("x", "t0")[i])
        total(flow, f"t{i}", ("x", "t0")[i], f"e{i}")
    layer(flow, "q", "y")
    layer(flow, "cross", "q", "t1", cost=9)
    total(flow, "s", "y", "cross")
    layer(flow, "own", "s", cost=9)
    total(flow, "s2", "s", "own")
    layer(flow, "head", "s2")
    return flow


def test_cross_attention_is_kept_where_the_cut_is_in_the_encoder() -> None:
    """Without the branch, the loss would not depend on the encoder."""
    found = route(encoder_decoder(), "t0")
    assert found.nodes == ("q", "cross", "s", "head")
    assert found.bypassed == {"s2": "s", "t1": "t0"}


def test_cross_attention_is_kept_where_both_streams_cross_the_cut() -> None:
    flow = encoder_decoder()
    change(flow, "y", carries_gradient=True)  # computed below the cut, as embeddings are
    assert set(after(flow, "t0").crossing) == {"t0", "y"}
    assert route(flow, "t0").nodes == ("q", "cross", "s", "head")


def test_another_stream_is_not_left_out_of_a_sum_but_may_leave_the_branch_out() -> None:
    flow = encoder_decoder()
    layer(flow, "own2", "y", cost=9)  # of the other stream
    layer(flow, "q2", "t1")
    total(flow, "s3", "own2", "q2")
    layer(flow, "cross3", "s3", "t1", cost=9)
    layer(flow, "last", "cross3")
    found = route(flow, "t0", ends=("last",))
    assert found.nodes == ("own2", "cross3", "last") and found.bypassed == {"s3": "own2", "t1": "t0"}
    layer(flow, "next", "s3")
    assert route(flow, "t0", ends=("next",)).nodes == ("own2", "q2", "s3", "next")


def test_a_way_without_gradient_is_none() -> None:
    """A mask that is made from a crossing tensor gives it no gradient: the branch runs."""
    flow: Flow = nx.DiGraph()
    layer(flow, "x")
    layer(flow, "a", "x")
    add(flow, "mask", ("a",), carries_gradient=False)
    layer(flow, "b", "a", cost=9)
    layer(flow, "y", "mask", "b", "x")
    total(flow, "s", "y", "x")
    layer(flow, "head", "s")
    assert route(flow, "a").nodes == ("mask", "b", "y", "s", "head")
    assert find_route(flow, after(flow, "a"), ["mask"], None) is None


def test_where_a_tensor_would_get_no_gradient_all_runs() -> None:
    flow = encoder_decoder()
    layer(flow, "b", "t0")
    layer(flow, "own2", "y")
    total(flow, "m", "own2", "b")
    layer(flow, "last", "s2", "m")
    position = Position(list(flow).index("cross"), "cross", ("cross", "t0"), 0)
    found = find_route(flow, position, ["last"], 0)
    assert found is not None
    assert found.nodes == ("s", "own", "s2", "b", "own2", "m", "last") and (found.bypassed, found.units) == ({}, None)


def test_every_end_is_computed_from_the_crossing_tensors() -> None:
    flow = encoder_decoder()
    layer(flow, "other", "e1")  # an end of the encoder itself, at the end of a branch
    layer(flow, "aside", "y")  # an end that does not depend on the cut
    found = route(flow, "t0", ends=("head", "other", "aside"))
    assert {"cross", "other", "e1", "aside"} <= set(found.nodes)
    # Alone, the end that does not depend on the cut gives no route.
    assert find_route(flow, after(flow, "t0"), ["aside"], 0) is None
    assert find_route(flow, after(flow, "t0"), ["x"], None) is None


def test_a_crossing_tensor_that_is_an_end() -> None:
    assert route(residual(1), "s0", ends=("s0",)) == Route((), {}, 0)


# -------------------------------------------------------------------------------------------- random graphs
def random_flow(rng: random.Random) -> Flow:
    """A DAG with sums, few kinds, and skips."""
    flow: Flow = nx.DiGraph()
    layer(flow, "x")
    for i in range(rng.randint(2, 25)):
        names = list(flow)
        reach = names[-rng.choice((2, 4, 30)) :]
        if rng.random() < 0.4 and len(reach) > 1:
            total(flow, f"n{i}", *rng.sample(reach, 2), width=rng.choice((4, 8)))
        else:
            sources = rng.sample(reach, min(len(reach), rng.choice((1, 1, 1, 2, 3))))
            cost, matrix = rng.choice((0.0, 1.0, 5.0)), rng.random() < 0.7
            mixes = rng.random() < 0.2
            carries = rng.random() < 0.9
            changes = {"cost": cost, "is_layer": matrix, "mixes": mixes, "carries_gradient": carries}
            layer(flow, f"n{i}", *sources, width=rng.choice((4, 4, 8)), **changes)
    return flow


def carrying(flow: Flow, position: Position) -> Flow:
    """The crossing tensors, and the nodes above the cut that carry gradient."""
    above = {name for name in list(flow)[position.index + 1 :] if flow_node(flow, name).carries_gradient}
    found: Flow = nx.DiGraph()
    found.add_nodes_from(above | set(position.crossing))
    found.add_edges_from((a, b) for a, b in flow.edges if a in found and b in above)
    return found


def depends(flow: Flow, position: Position) -> set[str]:
    """The nodes above the cut that give a crossing tensor a gradient."""
    graph = carrying(flow, position)
    return set().union(*(nx.descendants(graph, name) for name in position.crossing)) - set(position.crossing)


def replacement(found: Route, name: str) -> str:
    while name in found.bypassed:
        name = found.bypassed[name]
    return name


def used(flow: Flow, position: Position, found: Route, ends: list[str]) -> set[str]:
    """All values that get a gradient from the ends."""
    runs: nx.DiGraph[str] = nx.DiGraph()
    runs.add_edges_from((source, name) for name in found.nodes for source in flow.predecessors(name))
    runs.add_edges_from((other, name) for name, other in found.bypassed.items())
    runs.add_nodes_from(flow)
    runs = runs.subgraph(carrying(flow, position))
    return set().union(*({end} | nx.ancestors(runs, end) for end in ends if end in runs))


def check(flow: Flow, position: Position, ends: list[str], found: Route) -> None:
    """The route can run in its order, and gives every end that depends on the crossing tensors from them."""
    names = list(flow)
    below, above = set(names[: position.index + 1]), set(names[position.index + 1 :])
    assert list(found.nodes) == [name for name in names if name in set(found.nodes)] and set(found.nodes) <= above
    assert not set(found.nodes) & set(found.bypassed)
    known, from_crossing = set(below), set(position.crossing)
    for name in found.nodes:
        sources = [replacement(found, source) for source in flow.predecessors(name)]
        assert set(sources) <= known
        known.add(name)
        if from_crossing & set(sources) and flow_node(flow, name).carries_gradient:
            from_crossing.add(name)
    for name, other in found.bypassed.items():
        assert flow_node(flow, name).is_sum or flow_node(flow, name).kind == flow_node(flow, other).kind
        assert other in flow.predecessors(name) or name in depends(flow, position)
    for end in ends:
        assert replacement(found, end) in known
        if end in depends(flow, position) | set(position.crossing):
            assert replacement(found, end) in from_crossing
    for tensor in position.crossing:  # on each that an end depends on, above the cut, the route depends
        through = nx.descendants(carrying(flow, position), tensor) | {tensor}
        assert tensor in used(flow, position, found, ends) or not through & set(ends)


@pytest.mark.parametrize("seed", seeds(20, 200))
def test_random_graphs(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(10):
        flow = random_flow(rng)
        names = list(flow)
        position = after(flow, rng.choice(names[:-1]))
        ends = sorted(set(rng.choices(names, k=rng.choice((1, 2)))) | {names[-1]})
        wanted = [end for end in ends if end in depends(flow, position) or end in position.crossing]
        whole = find_route(flow, position, ends, None)
        assert (whole is None) == (not wanted)
        if whole is None:
            continue
        ancestors = set().union(*({end} | nx.ancestors(flow, end) for end in ends))
        assert set(whole.nodes) == ancestors - set(names[: position.index + 1]) and whole.bypassed == {}
        for units in range(4):
            found = find_route(flow, position, ends, units)
            assert found is not None and (found.units is None or found.units <= units)
            check(flow, position, ends, found)
            assert set(found.nodes) <= set(whole.nodes)
            assert set(found.bypassed) <= set(whole.nodes)


# ---------------------------------------------------------------------------------------------- writes
def test_a_write_whose_memory_is_read_by_another_name_runs() -> None:
    flow = residual(1)
    change(flow, "b0", storages=frozenset({100}))
    change(flow, "s0", storages=frozenset({100}), mutates=frozenset({100}))
    change(flow, "norm", kind="norm")
    flow.remove_edge("s0", "norm")
    flow.add_edge("b0", "norm")  # the norm reads b0, to which the sum has written
    assert route(flow, "x", None).nodes == ("a0", "b0", "norm", "head")
    found = with_writes(flow)
    assert set(found.edges) - set(flow.edges) == {("s0", "norm")}
    assert route(found, "x") == Route(("a0", "b0", "s0", "norm", "head"), {}, 0)
    assert flow_node(flow, "s0").is_sum  # the flow itself stays as it is


def test_a_write_whose_result_is_used_changes_nothing() -> None:
    flow = residual(1)
    change(flow, "b0", storages=frozenset({100}))
    change(flow, "s0", storages=frozenset({100}), mutates=frozenset({100}))
    found = with_writes(flow)
    assert set(found.edges) == set(flow.edges) and flow_node(found, "s0") == flow_node(flow, "s0")


def test_a_scale_alone_is_not_left_out() -> None:
    """Between two values of one kind without a layer nothing is gained, and the scale would be lost."""
    flow: Flow = nx.DiGraph()
    layer(flow, "x")
    layer(flow, "scaled", "x", kind="mul", is_layer=False)
    layer(flow, "again", "scaled", kind="mul", is_layer=False)
    layer(flow, "head", "again", width=3)
    assert route(flow, "scaled") == Route(("again", "head"), {}, 0)
    assert find_route(flow, after(flow, "x"), ("head",), 0) == Route(("scaled", "again", "head"), {}, 0)
