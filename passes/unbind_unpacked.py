"""Take a tensor apart by one `unbind` where all of its parts are used."""

import operator

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from dni_fx.graph import lint, record_of

__all__ = ["UnbindUnpacked"]


class UnbindUnpacked(PassBase):
    """Needs: an annotated graph. Leaves: `torch.unbind` where every part of a tensor along its first axis is used.

    A trace writes `q, k, v = x` as `x[0]`, `x[1]`, `x[2]`. The backward pass of each fills a whole tensor with zeros,
    and the three are added; the backward pass of `unbind` stacks three parts. A changed graph must be annotated again.
    """

    def call(self, graph_module: GraphModule) -> PassResult:
        graph = graph_module.graph
        written = frozenset[int]().union(*(record_of(node).mutates for node in graph.nodes))
        changed = False
        for node in list(graph.nodes):
            # Autograd forbids in-place writes to the results of unbind.
            if _is_unpacked(node) and not record_of(node).storages & written:
                users = list(node.users)
                with graph.inserting_after(node):
                    parts = graph.call_function(torch.unbind, (node,))
                if "nn_module_stack" in node.meta:
                    parts.meta["nn_module_stack"] = node.meta["nn_module_stack"]
                for user in users:
                    user.replace_input_with(node, parts)
                changed = True
        lint(graph)
        graph_module.recompile()
        return PassResult(graph_module, changed)


def _is_unpacked(node: Node) -> bool:
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.dim() == 0 or len(value) < 2:
        return False
    if not all(user.target is operator.getitem and type(user.args[1]) is int for user in node.users):
        return False
    return {user.args[1] for user in node.users} == set(range(len(value)))
