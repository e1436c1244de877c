"""Nodes run in another order, if they may; what autograd keeps is counted at the first node that needs it."""

import pytest
import torch
from small_graphs import SmallGraph, lines, records, runs
from torch import nn

from dni_fx.errors import DniFxError
from dni_fx.passes.reorder_nodes import ReorderNodes

X = torch.rand(5, 3)


def branches() -> torch.fx.GraphModule:
    """Two layers that keep the same input, and their sum."""
    small = SmallGraph(a=nn.Linear(3, 4), b=nn.Linear(3, 4))
    h = small.call(torch.relu, small.input("x"), name="h")
    a = small.module("a", h, name="first", saves={7: 60})
    b = small.module("b", h, name="second", saves={8: 4}, saves_again={7: 60})
    graph = small.give(small.call(torch.add, a, b, name="total"))
    for node in graph.graph.nodes:
        node.meta["val"] = X
    return graph


def test_the_same_values_in_another_order() -> None:
    module = branches()
    expected = module(X)
    before = lines(module)
    result = ReorderNodes(["x", "h", "second", "first", "total", "output"])(module)
    assert result is not None and result.modified
    assert lines(module) == [before[i] for i in (0, 1, 3, 2, 4, 5)]
    assert torch.equal(runs(module, X), expected)
    assert {name: one for name, one in records(module, "saves").items() if one} == {"second": {7: 60, 8: 4}}
    assert records(module, "saves_again")["first"] == {7: 60}


def test_back_again_it_is_as_before() -> None:
    module = branches()
    names, saves = [node.name for node in module.graph.nodes], records(module, "saves")
    ReorderNodes(["x", "h", "second", "first", "total", "output"])(module)
    ReorderNodes(names)(module)
    assert [node.name for node in module.graph.nodes] == names and records(module, "saves") == saves


@pytest.mark.parametrize(
    "names", ["x h first total second output", "x h first second output total", "x h first output"]
)
def test_an_order_that_is_none_is_refused(names: str) -> None:
    module = branches()
    before = lines(module)
    with pytest.raises(DniFxError, match="the nodes cannot run in another order: "):
        ReorderNodes(names.split())(module)
    assert lines(module) == before
