"""Take everything that a rewrite added out of a graph again."""

import operator
from typing import Any

from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from dni_fx import ops

__all__ = ["RemoveDni"]


class RemoveDni(PassBase):
    """Needs nothing: works by targets, so on graphs without `node.meta` too. Leaves the graph that was captured."""

    def call(self, graph_module: GraphModule) -> PassResult:
        graph = graph_module.graph
        for node in list(graph.nodes):
            if node.target in (ops.decouple, ops.inject):
                for following in list(node.users):
                    _replace(following, node.args[0][following.args[1]])
                graph.erase_node(node)
            if node.target in (ops.enter, ops.leave):
                before = node.args[0] if node.target is ops.enter else (*node.args[0], *node.args[1])
                for following in list(node.users):
                    _replace(following, before[following.args[1]])
                graph.erase_node(node)
            if node.target is ops.leaves:
                for part in list(node.users):
                    _take_out(part, *node.args)
                graph.erase_node(node)
        for node in reversed(graph.nodes):
            if not node.users and _is_ours(node):
                graph.erase_node(node)
        return PassResult(graph_module, True)


def _take_out(part: Node, state: Node, paths: Any) -> None:
    value, index = state, part.args[1]
    with part.graph.inserting_before(part):
        for key in paths[index]:
            value = part.graph.call_function(operator.getitem, (value, key))
    _replace(part, value)


def _replace(following: Node, value: Node) -> None:
    for user in list(following.users):
        if user.target is ops.writable:
            _replace(user, value)
    following.replace_all_uses_with(value)
    following.graph.erase_node(following)


def _is_ours(node: Node) -> bool:
    target = str(node.target)
    if node.op == "placeholder":
        return target == "dni_context"
    if node.op in ("call_module", "get_attr"):
        return target.startswith("dni.")
    return node.op == "call_method" and target == "detach" and "_detached" in node.name
