"""A state comes in through `ops.enter`, and its next value goes out through `ops.leave`."""

import operator
from typing import Any

import pytest
import torch
from small_graphs import SmallGraph, lines, records, runs
from torch.fx import GraphModule

from dni_fx import ops
from dni_fx.passes.add_synthesizers import AddSynthesizers
from dni_fx.passes.add_time_cuts import AddTimeCuts
from dni_fx.passes.cut_states_off import CutStatesOff
from dni_fx.passes.decouple_cuts import DecoupleCuts
from dni_fx.passes.mark_segments import MarkSegments
from dni_fx.plans import StateTensor, TimeCutPlan


def tensor(name: str, output: int, path: tuple[int | str, ...] = ()) -> StateTensor:
    return StateTensor(name, path, (output,), output, (2, 3), "float32", 0)


def cell() -> GraphModule:
    """r = x + h; y = relu(r); gives y and r, the next state."""
    small = SmallGraph()
    r = small.call(torch.add, small.input("x"), small.input("h"), name="r")
    return small.give((small.call(torch.relu, r, name="y"), r))


def with_cuts(
    module: GraphModule, states: list[TimeCutPlan], cuts: dict[str, list[str]], boundary: Any = ops.decouple
) -> list[str]:
    MarkSegments(list(cuts))(module)
    CutStatesOff([own.output for state in states for own in state.tensors])(module)
    AddSynthesizers(list(cuts.values()))(module)
    DecoupleCuts(boundary)(module)
    AddTimeCuts(states)(module)
    module.graph.lint()
    return lines(module)


def test_in_time_alone() -> None:
    module, given = cell(), (torch.rand(2, 3), torch.rand(2, 3))
    expected = module(*given)
    assert with_cuts(module, [TimeCutPlan((tensor("h", 1),))], {}) == [
        "x",
        "h",
        "dni_time0 = dni.time0",
        "enter = enter((h,), dni_time0)",
        "h_next = getitem(enter, 0)",
        "r = add(x, h_next)",
        "y = relu(r)",
        "dni_time0_1 = dni.time0",
        "leave = leave((y,), (r,), dni_time0_1)",
        "y_next = getitem(leave, 0)",
        "r_next = getitem(leave, 1)",
        "return (y_next, r_next)",
    ]
    added = ["dni_time0", "enter", "h_next", "dni_time0_1", "leave", "y_next", "r_next"]
    assert [name for name, role in records(module, "role").items() if role == "boundary"] == added
    assert records(module, "carries_gradient")["y_next"] and not records(module, "carries_gradient")["r_next"]
    torch.testing.assert_close(runs(module, *given), expected)


@pytest.mark.parametrize("boundary", [ops.decouple, ops.inject])
def test_a_state_of_the_lower_segment_leaves_at_its_cut(boundary: Any) -> None:
    module, given = cell(), (torch.rand(2, 3), torch.rand(2, 3))
    expected = module(*given)
    text = with_cuts(module, [TimeCutPlan((tensor("h", 1),))], {"r": ["r"]}, boundary)
    name = boundary.__name__
    assert text[5:] == [
        "r = add(x, h_next)",
        "r_detached_1 = .detach(r)",
        "r_synthetic = dni.cut0_r(r_detached_1)",
        "dni_segment0 = dni.segment0",
        "dni_time0_1 = dni.time0",
        "leave = leave((r,), (r,), dni_time0_1)",
        "r_next_1 = getitem(leave, 0)",
        "r_next_2 = getitem(leave, 1)",
        f"{name} = {name}((r_next_1,), (r_detached_1,), (r_synthetic,), dni_segment0)",
        f"r_next = getitem({name}, 0)",
        "y = relu(r_next)",
        "return (y, r_next_2)",
    ]
    assert records(module, "segment")["leave"] == 0
    torch.testing.assert_close(runs(module, *given), expected)


def test_a_state_of_the_upper_segment_enters_above_the_cut() -> None:
    small = SmallGraph()
    x, state = small.input("x"), small.input("h")
    r = small.call(torch.sin, x, name="r")
    s = small.call(torch.add, r, state, name="s")
    module = small.give((small.call(torch.relu, s, name="y"), s))
    text = with_cuts(module, [TimeCutPlan((tensor("h", 1),), (1,), 1)], {"r": ["r"]})
    assert text[text.index("r_next = getitem(decouple, 0)") :] == [
        "r_next = getitem(decouple, 0)",
        "dni_time0 = dni.time0",
        "enter = enter((h,), dni_time0)",
        "h_next = getitem(enter, 0)",
        "s = add(r_next, h_next)",
        "y = relu(s)",
        "dni_time0_1 = dni.time0",
        "leave = leave((y,), (s,), dni_time0_1)",
        "y_next = getitem(leave, 0)",
        "s_next = getitem(leave, 1)",
        "return (y_next, s_next)",
    ]
    assert records(module, "segment")["enter"] == records(module, "segment")["leave"] == 1


@pytest.mark.parametrize("keys", [(0, 1), ("h", "c")], ids=["tuple", "dict"])
def test_a_tuple_of_states_is_taken_apart(keys: tuple[Any, Any]) -> None:
    """Elements that the graph takes out are replaced; a user of the whole gets it built again."""
    small = SmallGraph()
    x, state = small.input("x"), small.input("state")
    h = small.call(operator.getitem, state, keys[0], name="h")
    r = small.call(torch.add, x, h, name="r")
    whole = small.call(len, state, name="whole", carries_gradient=False)
    module = small.give((small.call(torch.relu, r, name="y"), r, small.call(torch.sin, r, name="s"), whole))
    states = [TimeCutPlan(tuple(tensor("state", i + 1, (key,)) for i, key in enumerate(keys)))]
    built = (
        "(state_next_next, state_next_1_next)" if keys == (0, 1) else "{'h': state_next_next, 'c': state_next_1_next}"
    )
    assert with_cuts(module, states, {}) == [
        "x",
        "state",
        f"leaves = leaves(state, {tuple((key,) for key in keys)})",
        "state_next = getitem(leaves, 0)",
        "state_next_1 = getitem(leaves, 1)",
        "dni_time0 = dni.time0",
        "enter = enter((state_next, state_next_1), dni_time0)",
        "state_next_next = getitem(enter, 0)",
        "state_next_1_next = getitem(enter, 1)",
        "r = add(x, state_next_next)",
        f"whole = len({built})",
        "y = relu(r)",
        "s = sin(r)",
        "dni_time0_1 = dni.time0",
        "leave = leave((y,), (r, s), dni_time0_1)",
        "y_next = getitem(leave, 0)",
        "r_next = getitem(leave, 1)",
        "s_next = getitem(leave, 2)",
        "return (y_next, r_next, s_next, whole)",
    ]


def test_two_cuts_in_time_in_one_segment() -> None:
    """The outputs go through both calls of `ops.leave`."""
    small = SmallGraph()
    x, a, b = small.input("x"), small.input("a"), small.input("b")
    r = small.call(torch.add, x, a, name="r")
    s = small.call(torch.mul, r, b, name="s")
    module = small.give((small.call(torch.relu, s, name="y"), r, s))
    states = [TimeCutPlan((tensor("a", 1),)), TimeCutPlan((tensor("b", 2),))]
    text = with_cuts(module, states, {})
    assert [line for line in text if "leave" in line or "return" in line] == [
        "leave = leave((y,), (r,), dni_time0_1)",
        "y_next = getitem(leave, 0)",
        "r_next = getitem(leave, 1)",
        "leave_1 = leave((y_next,), (s,), dni_time1_1)",
        "y_next_next = getitem(leave_1, 0)",
        "s_next = getitem(leave_1, 1)",
        "return (y_next_next, r_next, s_next)",
    ]


def test_a_state_that_the_model_gives_twice() -> None:
    small = SmallGraph()
    x, a, b = small.input("x"), small.input("a"), small.input("b")
    r = small.call(torch.add, small.call(torch.mul, x, a, name="product"), b, name="r")
    module = small.give((small.call(torch.relu, r, name="y"), r, r))
    text = with_cuts(module, [TimeCutPlan((tensor("a", 1), tensor("b", 2)))], {})
    assert text[-5:] == [
        "leave = leave((y,), (r, r), dni_time0_1)",
        "y_next = getitem(leave, 0)",
        "r_next = getitem(leave, 1)",
        "r_next_1 = getitem(leave, 2)",
        "return (y_next, r_next, r_next_1)",
    ]
