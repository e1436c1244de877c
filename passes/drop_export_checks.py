"""Drop what torch.export adds: checks of dtypes and sizes, and copies of a tensor onto itself."""

from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

__all__ = ["DropExportChecks"]

_CHECKS = (
    torch.ops.aten._assert_tensor_metadata.default,  # fixes dtypes, and so forbids .double() and autocast
    torch.ops.aten._assert_scalar.default,
    torch.ops.aten.sym_constrain_range_for_size.default,
)


class DropExportChecks(PassBase):
    """Needs: a graph of torch.export. Leaves: no check of a dtype or size, no copy of a buffer onto itself."""

    def call(self, graph_module: GraphModule) -> PassResult:
        before = len(graph_module.graph.nodes)
        _drop_checks(graph_module.graph)
        _drop_self_copies(graph_module.graph)
        return PassResult(graph_module, len(graph_module.graph.nodes) != before)


def _drop_checks(graph: Graph) -> None:
    for node in reversed(graph.nodes):
        if node.target in _CHECKS and not node.users:
            graph.erase_node(node)


def _drop_self_copies(graph: Graph) -> None:
    """torch.export writes `buffer += 1` as an in-place operation, and at the end a copy of the buffer onto itself."""
    for node in graph.nodes:
        if node.target is torch.ops.aten.copy_.default and not node.users:
            source = node.args[1]
            while isinstance(source, Node) and source.op == "call_function" and _in_place(source.target):
                source = source.args[0]
            if isinstance(source, Node) and source.op == "get_attr" and source.target == node.args[0].target:
                graph.erase_node(node)


def _in_place(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target._schema.name.endswith("_")
