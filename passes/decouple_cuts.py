"""Put the boundary at every cut: the function that passes the outputs of the segment below on."""

import operator
from collections.abc import Callable

from torch.fx import Graph, GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from dni_fx import ops
from dni_fx.graph import NodeRecord, set_record
from dni_fx.passes.boundary import next_name, rewire, synthesizers_by_cut

__all__ = ["DecoupleCuts"]


class DecoupleCuts(PassBase):
    """Needs: `AddSynthesizers`, a module `dni.segment<k>` for every segment with a cut above it.

    Leaves: at each cut whose predictions are not used so far, one call of the boundary on all crossing tensors (role
    "boundary"). The nodes above the cut use its results.

    Args:
        boundary: `ops.decouple` (unlock="backward") or `ops.inject` (unlock="none").
    """

    def __init__(self, boundary: Callable[..., object] = ops.decouple) -> None:
        super().__init__()
        self.boundary = boundary

    def call(self, graph_module: GraphModule) -> PassResult:
        for cut, predictions in synthesizers_by_cut(graph_module.graph).items():
            if not predictions[0].users:
                _decouple(graph_module.graph, cut, predictions, self.boundary)
        return PassResult(graph_module, True)


def _decouple(graph: Graph, cut: int, predictions: list[Node], boundary: Callable[..., object]) -> None:
    detached = [prediction.args[0] for prediction in predictions]
    outputs = [node.args[0] for node in detached if isinstance(node, Node) and isinstance(node.args[0], Node)]
    with graph.inserting_after(predictions[-1]):
        segment = graph.get_attr(f"dni.segment{cut}")
    with graph.inserting_after(segment):
        arguments = (tuple(outputs), tuple(detached), tuple(predictions), segment)
        decoupled = graph.call_function(boundary, arguments)
    added = [segment, decoupled]
    for i, output in enumerate(outputs):
        with graph.inserting_after(added[-1]):
            added.append(graph.create_node("call_function", operator.getitem, (decoupled, i), name=next_name(output)))
    for node in added:
        set_record(node, NodeRecord(role="boundary", segment=cut, cut=cut))
    for output, following in zip(outputs, added[2:], strict=True):
        rewire(output, following, cut)
