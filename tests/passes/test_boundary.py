"""Which value a result stands for, and the helpers of the passes that put in boundaries."""

import operator

import pytest
import torch
from small_graphs import SmallGraph, lines, three_nodes
from torch.fx import Node

from dni_fx import ops
from dni_fx.passes.add_synthesizers import AddSynthesizers
from dni_fx.passes.boundary import next_name, origin, passed_on, rewire, synthesizers_by_cut, written_by_segment
from dni_fx.passes.mark_segments import MarkSegments


def through_everything() -> dict[str, Node]:
    small = SmallGraph()
    x, cut, h = small.input("x"), small.attribute("dni.time0"), small.input("h")
    enter = small.call(ops.enter, (h,), cut, name="enter")
    entered = small.call(operator.getitem, enter, 0, name="entered")
    r = small.call(torch.relu, entered, name="r")
    leave = small.call(ops.leave, (r,), (entered,), cut, name="leave")
    r_left = small.call(operator.getitem, leave, 0, name="r_left")
    state = small.call(operator.getitem, leave, 1, name="state")
    decouple = small.call(ops.decouple, (r_left, x), (r_left, x), (None, None), cut, name="decouple")
    second = small.call(operator.getitem, decouple, 1, name="second")
    first = small.call(operator.getitem, decouple, 0, name="first")
    copied = small.call(ops.writable, first, None, name="copied")
    element = small.call(operator.getitem, x, 0, name="element")
    module = small.give((copied, second, state, element))
    return {node.name: node for node in module.graph.nodes}


def test_what_a_call_passes_on() -> None:
    nodes = through_everything()
    found = {name: [value.name for value in passed_on(node)] for name, node in nodes.items() if passed_on(node)}
    assert found == {"enter": ["h"], "leave": ["r", "entered"], "decouple": ["r_left", "x"]}


@pytest.mark.parametrize(
    ("value", "before"),
    [
        ("entered", "h"),
        ("r", "r"),
        ("r_left", "r"),
        ("state", "h"),
        ("first", "r"),
        ("second", "x"),
        ("copied", "r"),
        ("element", "element"),
    ],
)
def test_the_value_before_all_cuts(value: str, before: str) -> None:
    assert origin(through_everything()[value]).name == before


def test_synthesizers_are_sorted_by_cut() -> None:
    module = three_nodes()
    MarkSegments(["h", "r"])(module)
    AddSynthesizers([["h"], ["r", "h"]])(module)
    found = {cut: [node.name for node in own] for cut, own in synthesizers_by_cut(module.graph).items()}
    assert found == {0: ["h_synthetic"], 1: ["r_synthetic", "h_synthetic_1"]}


def test_writes_add_up_over_a_segment() -> None:
    small = SmallGraph()
    x = small.input("x", segment=0)
    for segment, storage in ((1, 5), (1, 6), (2, 5)):
        small.call(torch.relu_, x, segment=segment, mutates={storage})
    assert written_by_segment(small.give(x, segment=2).graph) == {1: {5, 6}, 2: {5}}


@pytest.mark.parametrize("name", ["h", "h_next", "h_next_1", "h_next_copy", "h_next_copy_2"])
def test_the_name_above_a_cut_does_not_grow(name: str) -> None:
    small = SmallGraph()
    assert next_name(small.call(torch.relu, small.input("x"), name=name)) == "h_next"


def test_users_above_the_cut_are_rewired() -> None:
    small = SmallGraph()
    h = small.call(torch.relu, small.input("x"), name="h", segment=0)
    small.call(torch.sin, h, name="below", segment=0)
    other = small.call(torch.neg, h, name="other", segment=0)
    above = small.call(torch.add, h, h, name="above", segment=1)
    module = small.give(above, segment=1)
    rewire(h, other, 0)
    assert lines(module)[2:] == ["below = sin(h)", "other = neg(h)", "above = add(other, other)", "return above"]
