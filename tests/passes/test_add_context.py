"""The context is the last input, and may be left out."""

import torch
from small_graphs import SmallGraph, lines, records, runs, three_nodes

from dni_fx.passes.add_context import AddContext


def test_the_context_is_the_last_input() -> None:
    module = three_nodes()
    x = torch.rand(5, 3)
    before = module(x)
    AddContext()(module)
    assert lines(module) == ["x", "dni_context", "h = first(x)", "r = relu(h)", "y = second(r)", "return y"]
    assert records(module, "role")["dni_context"] == "context"
    assert records(module, "segment")["dni_context"] == 0
    assert torch.equal(runs(module, x), before)


def test_behind_all_inputs() -> None:
    small = SmallGraph()
    x = small.input("x")
    early = small.call(torch.relu, x, name="early")
    module = small.give(small.call(torch.add, early, small.input("z"), name="y"))
    AddContext()(module)
    assert lines(module) == ["x", "early = relu(x)", "z", "dni_context", "y = add(early, z)", "return y"]
