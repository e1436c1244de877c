"""Inline the bodies of `no_grad` and `autocast` blocks, which torch.export keeps as graphs of their own."""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from dni_fx.graph import module_calls

__all__ = ["InlineRegions"]


class InlineRegions(PassBase):
    """Needs: a graph of torch.export, each node with its `nn_module_stack`.

    Leaves: no `no_grad` or `autocast` region. The values that a `no_grad` block reads are detached; an `autocast` block
    begins and ends with a node of its own.
    """

    def call(self, graph_module: GraphModule) -> PassResult:
        regions = (torch.ops.higher_order.wrap_with_set_grad_enabled, torch.ops.higher_order.wrap_with_autocast)
        changed = False
        while found := [node for node in graph_module.graph.nodes if node.target in regions]:
            for node in found:
                _inline(graph_module, node, autocast=node.target is regions[1])
            changed = True
        return PassResult(graph_module, changed)


def _inline(module: GraphModule, node: fx.Node, *, autocast: bool) -> None:
    graph = module.graph
    settings, (body, *inputs) = node.args[: 4 if autocast else 1], node.args[4 if autocast else 1 :]
    assert isinstance(body, fx.Node)
    region: Any = module.get_submodule(str(body.target))
    first = list(graph.nodes)
    with graph.inserting_before(node):
        if not autocast and not settings[0]:  # no_grad: from detached inputs, the body's results carry no gradient
            inputs = [_detached(graph, value) for value in inputs]
        entered = graph.call_function(torch.amp.autocast_mode._enter_autocast, settings) if autocast else None
        values: dict[fx.Node, Any] = {}
        copied: Any = ()
        for inner in region.graph.nodes:
            if inner.op == "placeholder":
                values[inner] = inputs[len(values)] if len(values) < len(inputs) else None
            elif inner.op == "output":
                copied = fx.node.map_arg(inner.args[0], lambda n: values[n])
            elif inner.op == "get_attr":
                values[inner] = _lift(module, region, inner, body)
            else:
                values[inner] = graph.node_copy(inner, lambda n: values[n])
        if entered is not None:
            graph.call_function(torch.amp.autocast_mode._exit_autocast, (entered,))
    known = set(first)
    for new in graph.nodes:
        if new not in known:
            new.meta["nn_module_stack"] = (
                module_calls(new.meta.get("nn_module_stack", {})) or node.meta["nn_module_stack"]
            )
    for user in list(node.users):  # getitem
        user.replace_all_uses_with(copied[user.args[1]])
        graph.erase_node(user)
    graph.erase_node(node)
    if not body.users:
        graph.erase_node(body)


def _detached(graph: fx.Graph, value: Any) -> Any:
    is_tensor = isinstance(value, fx.Node) and isinstance(value.meta.get("val", value), Tensor | fx.Node)
    return graph.call_function(torch.ops.aten.detach.default, (value,)) if is_tensor else value


def _lift(module: GraphModule, region: nn.Module, inner: fx.Node, body: fx.Node) -> fx.Node:
    """Move a constant or a nested body of a region to the outer module."""
    name = f"{str(body.target).replace('.', '_')}_{str(inner.target).replace('.', '_')}"
    value: Any = region
    for part in str(inner.target).split("."):
        value = getattr(value, part)
    setattr(module, name, value)
    return module.graph.get_attr(name)
