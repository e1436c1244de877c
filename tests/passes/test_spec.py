"""Every rule passes a legal graph of a few nodes, and fires on the same graph with one thing broken."""

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_graphs import SmallGraph
from torch import nn
from torch.fx import GraphModule

from dni_fx import ops
from dni_fx.passes.spec import RULES, Stage, check

BOUNDARY: dict[str, Any] = {"role": "boundary", "cut": 0, "carries_gradient": False}

Make = Callable[[str], Stage]
CASES: list[tuple[str, Make, str, str]] = []  # the rule, what makes the graph, how to break it, and the message


def breaks(rule: str, **messages: str) -> Callable[[Make], Make]:
    """Register a function that makes a legal graph from "", and from each of the keywords one that breaks the rule."""

    def register(make: Make) -> Make:
        CASES.extend((rule, make, how, message) for how, message in messages.items())
        return make

    return register


def stage(module: GraphModule, *done: str) -> Stage:
    return Stage(module.graph, {node: node.name for node in module.graph.nodes}, (*done, "Last"))


@breaks("every_node_has_a_record", missing="h has no record")
def one_node(how: str) -> Stage:
    small = SmallGraph()
    h = small.call(torch.relu, small.input("x"), name="h")
    if how == "missing":
        del h.meta["dni"]
    return stage(small.give(h))


@breaks(
    "captured_names_stay",
    renamed="captured node h is now named other",
    gone="captured node unused is gone",
)
def captured(how: str) -> Stage:
    small = SmallGraph()
    x = small.input("x")
    h, unused = small.call(torch.relu, x, name="h"), small.call(torch.sin, x, name="unused")
    element = small.call(operator.getitem, x, 0, name="element")
    found = stage(small.give(h))
    small.graph.erase_node(element)  # legal: elements of a tuple may go
    if how == "renamed":
        h._rename("other")
    if how == "gone":
        small.graph.erase_node(unused)
    return found


@breaks("segments_grow", shrink="y of segment 0 comes after segment 1")
def three_segments(how: str) -> Stage:
    small = SmallGraph()
    h = small.call(torch.relu, small.input("x", segment=0), name="h", segment=1)
    y = small.call(torch.sin, h, name="y", segment=0 if how else 1)
    return stage(small.give(y, segment=2))


@breaks(
    "memory_written_above_a_cut_crosses_it_once",
    shared="h, v share memory and cross cut 0, and segment 1 or a later one writes to it",
    later="h, v share memory and cross cut 1, and segment 2 or a later one writes to it",
)
def written_in_place(how: str) -> Stage:
    """h and its view v; the last segment writes to v, and uses both, or v alone.

    a and b share memory, too, but no node writes to it above the cut that they cross.
    """
    small = SmallGraph()
    h = small.call(torch.sin, small.input("x", segment=0), name="h", segment=0, storages={7})
    a = small.call(torch.sin, h, name="a", segment=0, storages={9})
    b = small.call(torch.sin_, a, name="b", segment=0, storages={9}, mutates={9})
    v = small.method("view", h, -1, name="v", segment=1 if how == "later" else 0, storages={7})
    last = 2 if how == "later" else 1
    w = small.method("add_", v, 1, name="w", segment=last, storages={7}, mutates={7})
    y = small.call(torch.add, w, h if how else v, name="y", segment=last)
    return stage(small.give((y, a, b), segment=last))


@breaks("states_are_cut_off_once", twice="h_detached_1 cuts off h_detached, which is cut off")
@breaks("states_are_not_written_to_above", written="segment 1 writes to the state h, which segment 0 returns")
def detached_state(how: str) -> Stage:
    small = SmallGraph()
    h = small.call(torch.sin, small.input("x", segment=0), name="h", segment=0, storages={7})
    state = h
    small.call(torch.sin_, h, name="s", segment=0, storages={7}, mutates={7})  # in its own segment a write is legal
    for _ in range(2 if how == "twice" else 1):
        state = small.method("detach", state, name="h_detached", role="detach", segment=0)
    storages = {7} if how == "written" else {8}
    y = small.call(torch.relu_, h, name="y", segment=1, storages=storages, mutates=storages)
    return stage(small.give((y, state), segment=1))


@breaks("one_synthesizer_an_edge", twice="h has two synthesizers at cut 0")
def with_synthesizers(how: str) -> Stage:
    """A value may have one at each of two cuts, and two detached states."""
    small = SmallGraph()
    h = small.call(torch.sin, small.input("x"), name="h")
    for cut in (None, None, 0, 0 if how else 1):
        small.method("detach", h, role="detach", cut=cut)
    return stage(small.give(h))


@breaks("no_gradient_path_goes_round_a_cut", direct="y of segment 1 uses h of segment 0 directly")
def one_boundary(how: str) -> Stage:
    small = SmallGraph()
    x = small.input("x", segment=0)
    h = small.call(torch.sin, x, name="h", segment=0)
    decouple = small.call(ops.decouple, (h,), (h,), (None,), None, name="decouple", segment=0, **BOUNDARY)
    following = small.call(operator.getitem, decouple, 0, name="h_next", segment=0, **BOUNDARY)
    y = small.call(torch.add, h if how else following, x, name="y", segment=1)  # x carries no gradient
    return stage(small.give(y, segment=1))


@breaks(
    "decoupled_values_are_copied_before_a_write",
    no_copy="y uses h_next, not its copy, and the segment above the cut writes to that memory",
    by_another="output uses h_next, not its copy, and the segment above the cut writes to that memory",
)
def written_above(how: str) -> Stage:
    small = SmallGraph()
    h = small.call(torch.sin, small.input("x", segment=0), name="h", segment=0, storages={7})
    decouple = small.call(ops.decouple, (h,), (h,), (None,), None, name="decouple", segment=0, **BOUNDARY)
    following = small.call(operator.getitem, decouple, 0, name="h_next", segment=0, **BOUNDARY)
    copied = small.call(ops.writable, following, None, name="copied", role="copy", segment=0)
    y = small.call(torch.relu_, following if how == "no_copy" else copied, name="y", segment=1, mutates={7})
    return stage(small.give((y, following if how == "by_another" else y), segment=1), "CopyWritten")


@breaks("dead_code_elimination_keeps_what_trains", synthesizer="dead code elimination would remove prediction")
def unused_calls(how: str) -> Stage:
    small = SmallGraph(pure=nn.Identity())
    x = small.input("x")
    target = "pure" if how == "synthesizer" else "dni.cut0_h"
    small.module(target, x, name="prediction", role="synthesizer")
    small.call(ops.decouple, (x,), (x,), (None,), None)
    return stage(small.give(x))


@breaks(
    "time_cuts_have_two_ends",
    no_enter="dni.time0 has 0 calls of ops.enter and 1 of ops.leave",
    left_twice="dni.time0 has 1 calls of ops.enter and 2 of ops.leave",
    fewer="enter takes 1 states of dni.time0, and leave returns 2",
)
@breaks(
    "states_come_in_through_enter",
    used_beside="r uses the state h, which enter takes",
    made="enter takes made, which is no input of the graph",
)
@breaks(
    "states_go_out_through_leave",
    still_detached="the state r is returned as r_detached, not as a result of ops.leave",
    state_used="again uses r_next, which is the state for the next call",
)
@breaks("results_of_a_segment_go_through_leave", round_leave="y is passed on by segment 0, but not through leave")
def in_time(how: str) -> Stage:
    """r = x + h; y = relu(r); r is the next h. An output without gradient needs no `ops.leave`."""
    small = SmallGraph()
    x, h, cut = small.input("x", segment=0), small.input("h", segment=0), small.attribute("dni.time0", segment=0)
    state, following = h, h
    if how == "made":
        state = small.call(torch.sin, h, name="made", segment=0)
    if how != "no_enter":
        enter = small.call(ops.enter, (state,), cut, name="enter", segment=0, **BOUNDARY)
        following = small.call(operator.getitem, enter, 0, name="h_next", segment=0, **BOUNDARY)
    r = small.call(torch.add, x, h if how == "used_beside" else following, name="r", segment=0)
    y = small.call(torch.relu, r, name="y", segment=0)
    states = (r, r) if how == "fewer" else (r,)
    for _ in range(2 if how == "left_twice" else 1):
        leave = small.call(ops.leave, (y,), states, cut, name="leave", segment=0, **BOUNDARY)
    left = small.call(operator.getitem, leave, 0, name="y_next", segment=0, role="boundary")
    next_state = small.call(operator.getitem, leave, 1, name="r_next", segment=0, **BOUNDARY)
    if how == "still_detached":
        next_state = small.method("detach", r, name="r_detached", role="detach", segment=0)
    if how == "state_used":
        small.call(torch.sin, next_state, name="again", segment=0)
    return stage(small.give((y if how == "round_leave" else left, next_state, x), segment=0))


@breaks("states_come_in_through_enter", used_beside="first uses the state state, which leaves takes")
def tuple_of_states(how: str) -> Stage:
    small = SmallGraph()
    x, state, cut = small.input("x"), small.input("state"), small.attribute("dni.time0")
    leaves = small.call(ops.leaves, state, ((0,),), name="leaves", **BOUNDARY)
    part = small.call(operator.getitem, leaves, 0, name="part", **BOUNDARY)
    enter = small.call(ops.enter, (part,), cut, name="enter", **BOUNDARY)
    following = small.call(operator.getitem, state if how else enter, 0, name="first")
    r = small.call(torch.add, x, following, name="r")
    leave = small.call(ops.leave, (r,), (r,), cut, name="leave", **BOUNDARY)
    return stage(small.give(tuple(small.call(operator.getitem, leave, i, **BOUNDARY) for i in range(2))))


@breaks("results_of_a_segment_go_through_leave", round_leave="h is passed on by segment 0, but not through leave")
def in_time_and_depth(how: str) -> Stage:
    """The state h of segment 0 leaves below the boundary; the outputs of segment 1 need no `ops.leave`."""
    small = SmallGraph()
    x, cut = small.input("x", segment=0), small.attribute("dni.time0", segment=0)
    enter = small.call(ops.enter, (x,), cut, name="enter", segment=0, **BOUNDARY)
    entered = small.call(operator.getitem, enter, 0, segment=0, **BOUNDARY)
    h = small.call(torch.sin, entered, name="h", segment=0)
    leave = small.call(ops.leave, (h,), (h,), cut, name="leave", segment=0, **BOUNDARY)
    left, state = (small.call(operator.getitem, leave, i, segment=0, **BOUNDARY) for i in range(2))
    outputs = (h if how else left,)
    decouple = small.call(ops.decouple, outputs, (h,), (None,), None, name="decouple", segment=0, **BOUNDARY)
    following = small.call(operator.getitem, decouple, 0, segment=0, **BOUNDARY)
    y = small.call(torch.relu, following, name="y", segment=1)
    return stage(small.give((y, state), segment=1))


@breaks(
    "pieces_have_two_ends",
    in_another="again begins a piece in another",
    no_begin="end ends no piece",
    no_end="the last piece has no end",
    added="r of role copy stands in a piece",
    not_taken="r uses x, which the begin of its piece does not take",
)
def one_piece(how: str) -> Stage:
    """A piece of two nodes, which takes x."""
    small = SmallGraph()
    x = small.input("x")
    begin: Any = None
    if how != "no_begin":
        begin = small.call(ops.begin_piece, None, 0, () if how == "not_taken" else (x,), (), name="begin", role="piece")
    if how == "in_another":
        begin = small.call(ops.begin_piece, None, 1, (x,), (), name="again", role="piece")
    r = small.call(torch.relu, x, name="r", role="copy" if how == "added" else "model")
    y = small.call(torch.sin, r, name="y")
    if how != "no_end":
        small.call(ops.end_piece, begin, name="end", role="piece")
    return stage(small.give(y))


@pytest.mark.parametrize(
    ("rule", "make", "how", "message"), CASES, ids=[f"{case[0]}-{case[1].__name__}-{case[2]}" for case in CASES]
)
def test_a_rule_fires_on_a_broken_graph(rule: str, make: Make, how: str, message: str) -> None:
    with pytest.raises(AssertionError) as caught:
        check(make(how))
    assert str(caught.value) == f"after Last: {rule}: {message}"


@pytest.mark.parametrize("make", dict.fromkeys(case[1] for case in CASES), ids=lambda make: make.__name__)
def test_the_legal_graph_passes(make: Make) -> None:
    check(make(""))


def test_every_rule_has_a_broken_graph() -> None:
    assert {case[0] for case in CASES} == {rule.__name__ for rule in RULES}


def test_all_that_breaks_the_first_broken_rule_is_listed() -> None:
    small = SmallGraph()
    x = small.input("x")
    for name in ("a", "b"):
        del small.call(torch.relu, x, name=name).meta["dni"]
    with pytest.raises(AssertionError, match="a has no record; b has no record"):
        check(stage(small.give(x)))


def test_copies_are_not_needed_before_the_pass_that_makes_them() -> None:
    found = written_above("no_copy")
    check(Stage(found.graph, found.captured, ("DecoupleCuts",)))
