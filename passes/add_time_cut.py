"""Cut the state off between two calls, and put its synthesizer there."""

import operator
from collections.abc import Sequence

from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from dni_fx import meta, ops
from dni_fx.meta import NodeMeta

__all__ = ["AddTimeCut"]


class AddTimeCut(PassBase):
    """Needs: marked segments, a module `dni.time`.

    Leaves: a call of `ops.enter` on the state that comes in, one of `ops.leave` on outputs and state that go out, and
    all their users on what these give (role "boundary").

    Args:
        inputs: Names of the placeholders of the state.
        outputs: Places of its tensors among the nodes that the graph gives.
    """

    def __init__(self, inputs: Sequence[str], outputs: Sequence[int]) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs

    def call(self, graph_module: GraphModule) -> PassResult:
        graph = graph_module.graph
        placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        by_name = {node.name: node for node in placeholders}
        states = tuple(by_name[name] for name in self.inputs)  # in the order of the outputs
        with graph.inserting_after(placeholders[-1]):
            cut = graph.get_attr("dni.time")
        with graph.inserting_after(cut):
            entered = graph.call_function(ops.enter, (states, cut))
        added = [cut, entered]
        for i, state in enumerate(states):
            with graph.inserting_after(added[-1]):
                following = graph.create_node(
                    "call_function", operator.getitem, (entered, i), name=f"{state.name}_next"
                )
            state.replace_all_uses_with(following, delete_user_cb=lambda user: user is not entered)
            added.append(following)
        added += self._leave(graph_module)
        for node in added:
            node.meta["dni"] = NodeMeta(role="boundary", segment=meta.of(node.prev).segment)
        return PassResult(graph_module, True)

    def _leave(self, graph_module: GraphModule) -> list[Node]:
        graph = graph_module.graph
        output = graph.output_node()
        given: list[Node] = []
        map_arg(output.args, given.append)
        others = [n for i, n in enumerate(given) if i not in self.outputs and meta.of(n).carries_gradient]
        others = list(dict.fromkeys(others))
        states = tuple(given[i] for i in self.outputs)
        with graph.inserting_before(output):
            cut = graph.get_attr("dni.time")
            left = graph.call_function(ops.leave, (tuple(others), states, cut))
            parts = [
                graph.create_node("call_function", operator.getitem, (left, i), name=f"{node.name}_next")
                for i, node in enumerate((*others, *states))
            ]
        by_place = dict(zip(self.outputs, parts[len(others) :], strict=True))
        by_node = dict(zip(others, parts, strict=False))
        places = iter(range(len(given)))

        def following(node: Node) -> Node:
            return by_place.get(next(places)) or by_node.get(node, node)

        output.args = map_arg(output.args, following)
        return [cut, left, *parts]
