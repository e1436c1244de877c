"""Remove from a graph everything that a rewrite added."""

import operator
from typing import Any

from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from dni_fx import ops
from dni_fx.passes.boundary import passed_on

__all__ = ["RemoveDni"]


class RemoveDni(PassBase):
    """Needs: nothing; a graph without `node.meta` will do, since the pass reads targets only.

    Leaves: the graph that was captured.
    """

    def call(self, graph_module: GraphModule) -> PassResult:
        graph = graph_module.graph
        for node in list(graph.nodes):
            values = passed_on(node)
            if values:
                for part in list(node.users):
                    _replace(part, values[part.args[1]])
                graph.erase_node(node)
            if node.target is ops.leaves:
                for part in list(node.users):
                    _take_out(part, *node.args)
                graph.erase_node(node)
        for node in reversed(graph.nodes):
            if not node.users and _is_added(node):
                graph.erase_node(node)
        return PassResult(graph_module, True)


def _take_out(part: Node, state: Node, paths: Any) -> None:
    """Index the tuple or dict `state` again where `ops.leaves` returned one of its tensors."""
    value, index = state, part.args[1]
    with part.graph.inserting_before(part):
        for key in paths[index]:
            value = part.graph.call_function(operator.getitem, (value, key))
    _replace(part, value)


def _replace(part: Node, value: Node) -> None:
    """Replace a result of a boundary, and its writable copies, by the value that was passed on."""
    for user in list(part.users):
        if user.target is ops.writable:
            _replace(user, value)
    part.replace_all_uses_with(value)
    part.graph.erase_node(part)


def _is_added(node: Node) -> bool:
    target = str(node.target)
    if node.target in (ops.begin_piece, ops.end_piece):
        return True
    if node.op == "placeholder":
        return target == "dni_context"
    if node.op in ("call_module", "get_attr"):
        return target.startswith("dni.") or node.name.startswith("borrowed_")
    if node.target is operator.getitem:
        result: Any = node.args[0]
        return result.op == "call_module" and str(result.target).startswith("dni.")
    return node.op == "call_method" and target == "detach" and "_detached" in node.name
