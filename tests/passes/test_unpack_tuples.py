"""A tuple that is passed on whole becomes a tuple of its elements."""

import operator
from typing import Any

import pytest
import torch
from small_graphs import SmallGraph, lines, records, runs
from torch.fx import GraphModule

from dni_fx.passes.unpack_tuples import UnpackTuples


def pair(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x + 1, x + 2


def nested(x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    return x + 1, [x + 2]


def gives_whole(function: Any, value: Any, **record: Any) -> GraphModule:
    """The graph gives a whole tuple, and its element 0 again."""
    small = SmallGraph()
    whole = small.call(function, small.input("x"), name="whole", **record)
    whole.meta |= {"val": value, "nn_module_stack": {"block": ("block", "Block")}}
    return small.give((whole, small.call(operator.getitem, whole, 0, name="first")))


def test_the_exact_nodes() -> None:
    module, x = gives_whole(pair, (torch.zeros(2), torch.ones(2))), torch.rand(2)
    expected = module(x)
    assert UnpackTuples()(module).modified
    assert lines(module) == [
        "x",
        "whole = pair(x)",
        "getitem = getitem(whole, 0)",
        "getitem_1 = getitem(whole, 1)",
        "first = getitem(whole, 0)",
        "return ((getitem, getitem_1), first)",
    ]
    element = next(node for node in module.graph.nodes if node.name == "getitem_1")
    assert torch.equal(element.meta["val"], torch.ones(2))
    assert element.meta["nn_module_stack"] == {"block": ("block", "Block")}
    assert records(module, "carries_gradient")["getitem_1"]
    torch.testing.assert_close(runs(module, x), expected)


def test_a_tuple_in_a_tuple() -> None:
    module = gives_whole(nested, (torch.zeros(2), [torch.zeros(2)]))
    assert UnpackTuples()(module).modified
    assert lines(module)[2:] == [
        "getitem = getitem(whole, 0)",
        "getitem_1 = getitem(whole, 1)",
        "getitem_2 = getitem(getitem_1, 0)",
        "first = getitem(whole, 0)",
        "return ((getitem, [getitem_2]), first)",
    ]


@pytest.mark.parametrize(
    "module",
    [
        gives_whole(pair, (torch.zeros(2),), carries_gradient=False),
        gives_whole(torch.relu, torch.zeros(2)),
    ],
    ids=["no-gradient", "no-tuple"],
)
def test_a_graph_that_stays(module: GraphModule) -> None:
    before = lines(module)
    assert not UnpackTuples()(module).modified
    assert lines(module) == before
