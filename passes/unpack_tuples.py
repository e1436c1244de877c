"""Take tuples apart that are passed on whole: only tensors can cross a cut."""

import operator
from typing import Any

from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.utils import _pytree as pytree

from dni_fx.graph import NodeRecord, lint, record_of, set_record

__all__ = ["UnpackTuples"]


class UnpackTuples(PassBase):
    """Needs: an annotated graph. Leaves: of each tuple that carries gradient, no user but `operator.getitem`.

    `return y, state` of an LSTM becomes `return y, (state[0], state[1])`. A changed graph must be annotated again.
    """

    def call(self, graph_module: GraphModule) -> PassResult:
        changed = False
        for node in list(graph_module.graph.nodes):
            changed |= _unpack(node)
        lint(graph_module.graph)
        graph_module.recompile()
        return PassResult(graph_module, changed)


def _unpack(node: Node) -> bool:
    value: Any = node.meta.get("val")
    users = [user for user in node.users if user.target is not operator.getitem]
    if type(value) not in (tuple, list) or not users or not node.op.startswith("call_"):
        return False
    if not record_of(node).carries_gradient:
        return False
    elements: list[Node] = []
    for index in range(len(value)):
        with node.graph.inserting_after(elements[-1] if elements else node):
            elements.append(node.graph.call_function(operator.getitem, (node, index)))
    for element, one in zip(elements, value, strict=True):
        set_record(element, NodeRecord(carries_gradient=True))
        element.meta["val"] = one
        if "nn_module_stack" in node.meta:
            element.meta["nn_module_stack"] = node.meta["nn_module_stack"]
    whole = type(value)(elements)
    for user in users:
        user.args, user.kwargs = pytree.tree_map(lambda a: whole if a is node else a, (user.args, user.kwargs))
    for element in elements:
        _unpack(element)
    return True
