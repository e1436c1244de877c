"""Call `dni.outcome` on the model's output: the losses of critics are fitted to the loss of this output."""

from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from dni_fx.graph import NodeRecord, record_of, set_record

__all__ = ["ObserveOutput"]


class ObserveOutput(PassBase):
    """Needs: `AddContext`, a module `dni.outcome`.

    Leaves: a call of `dni.outcome` (role "outcome") on the first output that carries gradient, if there is one.
    """

    def call(self, graph_module: GraphModule) -> PassResult:
        graph = graph_module.graph
        output = graph.output_node()
        context = next(n for n in graph.nodes if record_of(n).role == "context")
        found = [n for n in output.all_input_nodes if "val" in n.meta and record_of(n).carries_gradient]
        if not found:
            return PassResult(graph_module, False)
        with graph.inserting_before(output):
            observed: Node = graph.call_module("dni.outcome", (found[0], context))
        set_record(observed, NodeRecord(role="outcome", segment=record_of(found[0]).segment))
        return PassResult(graph_module, True)
