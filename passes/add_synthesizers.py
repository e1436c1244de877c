"""Call a synthesizer on a detached copy of every tensor that crosses a cut."""

import operator
from collections.abc import Sequence

from torch.fx import Graph, GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from dni_fx.graph import NodeRecord, record_of, set_record
from dni_fx.passes.boundary import end_of_segment
from dni_fx.plans import crossing_name

__all__ = ["AddSynthesizers"]


class AddSynthesizers(PassBase):
    """Needs: `MarkSegments`, a module `dni.<crossing_name>` for every crossing tensor.

    Leaves: for each tensor that gets a synthetic gradient, at the end of the segment below the cut or behind the exit,
    a `detach` (role "detach") and a call of the tensor's synthesizer (role "synthesizer"), with the context, or with
    the gradient that an exit has computed. No node uses the prediction yet.

    Args:
        cuts: Names of the tensors of each cut.
    """

    def __init__(self, cuts: Sequence[Sequence[str]]) -> None:
        super().__init__()
        self.cuts = cuts

    def call(self, graph_module: GraphModule) -> PassResult:
        graph = graph_module.graph
        by_name = {node.name: node for node in graph.nodes}
        context = next((n for n in graph.nodes if record_of(n).role == "context"), None)
        for cut, names in enumerate(self.cuts):
            gradients = _gradients(graph, cut)
            last = gradients[-1] if gradients else end_of_segment(graph, cut)
            for index, name in enumerate(names):
                given = gradients[index] if gradients else context
                last = _call_synthesizer(graph, cut, by_name[name], given, last)
        return PassResult(graph_module, True)


def _gradients(graph: Graph, cut: int) -> list[Node]:
    """The gradients from the exit of a cut, in the order of the tensors; empty if the cut has no exit."""
    nodes = [node for node in graph.nodes if record_of(node).role == "exit" and record_of(node).cut == cut]
    return [node for node in nodes if node.target is operator.getitem]


def _call_synthesizer(graph: Graph, cut: int, tensor: Node, given: Node | None, after: Node) -> Node:
    segment = record_of(after).segment
    detached = next(
        (user for user in tensor.users if record_of(user).role == "detach" and record_of(user).cut == cut), None
    )
    if detached is None:
        with graph.inserting_after(after):
            detached = after = graph.create_node("call_method", "detach", (tensor,), name=f"{tensor.name}_detached")
    with graph.inserting_after(after):
        arguments = (detached,) if given is None else (detached, given)
        target = f"dni.{crossing_name(cut, tensor.name)}"
        prediction = graph.create_node("call_module", target, arguments, name=f"{tensor.name}_synthetic")
    set_record(detached, NodeRecord(role="detach", segment=segment, cut=cut))
    set_record(prediction, NodeRecord(role="synthesizer", segment=segment, cut=cut))
    return prediction
