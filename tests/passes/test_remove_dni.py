"""What the passes added is removed, and the captured graph is left."""

import operator
from typing import Any

import pytest
import torch
from small_graphs import SmallGraph, lines, runs, three_nodes
from torch import nn

from dni_fx import ops
from dni_fx.passes.add_context import AddContext
from dni_fx.passes.add_synthesizers import AddSynthesizers
from dni_fx.passes.add_time_cuts import AddTimeCuts
from dni_fx.passes.copy_written import CopyWritten
from dni_fx.passes.cut_states_off import CutStatesOff
from dni_fx.passes.decouple_cuts import DecoupleCuts
from dni_fx.passes.mark_segments import MarkSegments
from dni_fx.passes.remove_dni import RemoveDni
from dni_fx.plans import StateTensor, TimeCutPlan


@pytest.mark.parametrize("boundary", [ops.decouple, ops.inject])
def test_cuts_in_depth(boundary: Any) -> None:
    """With a context and a writable copy."""
    small = SmallGraph(a=nn.Linear(3, 3), b=nn.Linear(3, 3))
    h = small.module("a", small.input("x"), name="h", storages={7})
    r = small.call(torch.relu_, h, name="r", storages={7}, mutates={7})
    y = small.module("b", r, name="y")
    y.meta["val"] = torch.zeros(2, 3)
    module, x = small.give(y), torch.rand(2, 3)
    before, expected = lines(module), module(x)
    added = [MarkSegments(["h", "r"]), AddContext(), AddSynthesizers([["h"], ["r"]])]
    for one in (*added, DecoupleCuts(boundary), *([CopyWritten()] if boundary is ops.decouple else [])):
        one(module)
    assert len(lines(module)) > 12 and ("writable" in str(lines(module))) == (boundary is ops.decouple)
    for node in module.graph.nodes:
        node.meta.clear()
    RemoveDni()(module)
    assert lines(module) == before
    assert torch.equal(runs(module, x), expected)


def test_cuts_in_time() -> None:
    """The element of a state is taken out of its tuple again; names of such elements are new."""
    small = SmallGraph()
    x, state = small.input("x"), small.input("state")
    r = small.call(torch.add, x, small.call(operator.getitem, state, 0, name="h"), name="r")
    module = small.give((small.call(torch.relu, r, name="y"), r))
    state_tensor = StateTensor("state", (0,), (1,), 1, (2, 3), "float32", 0)
    for one in (
        MarkSegments(["r"]),
        CutStatesOff([1]),
        AddSynthesizers([["r"]]),
        DecoupleCuts(),
        AddTimeCuts([TimeCutPlan((state_tensor,))]),
    ):
        one(module)
    RemoveDni()(module)
    assert lines(module) == [
        "x",
        "state",
        "getitem = getitem(state, 0)",
        "r = add(x, getitem)",
        "y = relu(r)",
        "return (y, r)",
    ]


def test_a_detach_of_the_model_stays() -> None:
    small = SmallGraph()
    h = small.method("detach", small.input("x"), name="h")
    module = small.give(small.call(torch.relu, h, name="y"))
    before = lines(module)
    RemoveDni()(module)
    assert lines(module) == before


def test_a_graph_without_cuts_stays() -> None:
    module = three_nodes()
    before = lines(module)
    RemoveDni()(module)
    assert lines(module) == before
