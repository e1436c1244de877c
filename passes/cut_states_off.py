"""Detach the states that a recurrent model returns."""

from collections.abc import Sequence

from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from dni_fx.graph import NodeRecord, record_of, returned_nodes, set_record

__all__ = ["CutStatesOff"]


class CutStatesOff(PassBase):
    """Needs: `MarkSegments`.

    Leaves: after each state, a `detach` of it (role "detach", no cut), which the graph returns in place of the state.
    So a state crosses no cut in depth between the node that makes the state and the graph's output.

    Args:
        indices: The indices of the states among the nodes that the graph returns.
    """

    def __init__(self, indices: Sequence[int]) -> None:
        super().__init__()
        self.indices = set(indices)

    def call(self, graph_module: GraphModule) -> PassResult:
        output = graph_module.graph.output_node()
        returned = returned_nodes(graph_module.graph)
        cut_off = {i: _cut_off(returned[i]) for i in self.indices}
        count = iter(range(len(returned)))
        output.args = map_arg(output.args, lambda node: cut_off.get(next(count), node))
        return PassResult(graph_module, True)


def _cut_off(state: Node) -> Node:
    graph = state.graph
    at = state if state.op != "placeholder" else [node for node in graph.nodes if node.op == "placeholder"][-1]
    with graph.inserting_after(at):
        detached = graph.create_node("call_method", "detach", (state,), name=f"{state.name}_detached")
    set_record(detached, NodeRecord(role="detach", segment=record_of(state).segment))
    return detached
