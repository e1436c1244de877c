"""The bodies of `no_grad` and `autocast` blocks become nodes of the outer graph."""

import operator
from typing import Any

import torch
from small_graphs import lines, runs
from torch import nn
from torch.fx import Graph, GraphModule

from dni_fx.passes.inline_regions import InlineRegions

NO_GRAD = torch.ops.higher_order.wrap_with_set_grad_enabled
AUTOCAST = torch.ops.higher_order.wrap_with_autocast
STACK = {"block": ("block", "Block")}


def body() -> GraphModule:
    """inner, w -> (matmul(inner, w * 2),)"""
    graph = Graph()
    inner, w = graph.placeholder("inner"), graph.placeholder("w")
    graph.output((graph.call_function(torch.matmul, (inner, graph.call_function(torch.mul, (w, 2)))),))
    return GraphModule(nn.Module(), graph)


def with_region(region: Any, *settings: Any) -> GraphModule:
    """h = sin(x); block: k = matmul(h, w * 2); y = h + k."""
    root, graph = nn.Module(), Graph()
    root.add_module("inside", body())
    root.register_parameter("w", nn.Parameter(torch.rand(3, 3)))
    x, w, inside = graph.placeholder("x"), graph.get_attr("w"), graph.get_attr("inside")
    h = graph.call_function(torch.sin, (x,))
    block = graph.create_node("call_function", region, (*settings, inside, h, w), name="block")
    block.meta["nn_module_stack"] = STACK
    element = graph.call_function(operator.getitem, (block, 0))
    graph.output(graph.call_function(torch.add, (h, element)))
    return GraphModule(root, graph)


def test_no_grad() -> None:
    module, x = with_region(NO_GRAD, False), torch.rand(2, 3, requires_grad=True)
    expected = module(x)
    assert InlineRegions()(module).modified
    assert lines(module) == [
        "x",
        "w = w",
        "sin = sin(x)",
        "detach_default = detach.default(sin)",
        "detach_default_1 = detach.default(w)",
        "mul = mul(detach_default_1, 2)",
        "matmul = matmul(detach_default, mul)",
        "add = add(sin, matmul)",
        "return add",
    ]
    y = runs(module, x)
    assert torch.equal(y, expected)
    y.sum().backward()
    assert module.w.grad is None and torch.equal(x.grad, torch.cos(x.detach()))
    stacks = {node.name: node.meta.get("nn_module_stack") for node in module.graph.nodes}
    assert stacks["mul"] == stacks["matmul"] == stacks["detach_default"] == STACK and stacks["sin"] is None


def test_enable_grad_detaches_nothing() -> None:
    module = with_region(NO_GRAD, True)
    InlineRegions()(module)
    assert lines(module)[3:5] == [
        "mul = mul(w, 2)",
        "matmul = matmul(sin, mul)",
    ]


def test_autocast() -> None:
    module, x = with_region(AUTOCAST, "cpu", torch.bfloat16, True, False), torch.rand(2, 3)
    expected = module(x)
    InlineRegions()(module)
    assert lines(module) == [
        "x",
        "w = w",
        "sin = sin(x)",
        "_enter_autocast = _enter_autocast(cpu, torch.bfloat16, True, False)",
        "mul = mul(w, 2)",
        "matmul = matmul(sin, mul)",
        "_exit_autocast = _exit_autocast(_enter_autocast)",
        "add = add(sin, matmul)",
        "return add",
    ]
    assert torch.equal(runs(module, x), expected)


def test_a_block_in_a_block() -> None:
    module, x = with_region(NO_GRAD, False), torch.rand(2, 3)
    expected = module(x)
    outer, graph = nn.Module(), Graph()
    outer.add_module("outside", module)
    arguments = (False, graph.get_attr("outside"), graph.placeholder("x"))
    output: Any = module.graph.output_node()
    output.args = ((output.args[0],),)
    module.recompile()
    block = graph.call_function(NO_GRAD, arguments)
    block.meta["nn_module_stack"] = STACK
    graph.output(graph.call_function(operator.getitem, (block, 0)))
    both = GraphModule(outer, graph)
    InlineRegions()(both)
    assert not [line for line in lines(both) if "wrap" in line or "getitem" in line]
    assert torch.equal(runs(both, x), expected)


def test_a_graph_without_blocks_stays() -> None:
    graph = Graph()
    graph.output(graph.call_function(torch.sin, (graph.placeholder("x"),)))
    module = GraphModule(nn.Module(), graph)
    assert not InlineRegions()(module).modified
    assert lines(module) == ["x", "sin = sin(x)", "return sin"]
