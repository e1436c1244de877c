"""Add to the graph the input that synthesizers are conditioned on."""

from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from dni_fx.graph import NodeRecord, set_record

__all__ = ["AddContext"]


class AddContext(PassBase):
    """Needs: `MarkSegments`. Leaves: a last placeholder `dni_context` (role "context"), None by default."""

    def call(self, graph_module: GraphModule) -> PassResult:
        graph = graph_module.graph
        placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        with graph.inserting_after(placeholders[-1]):
            context = graph.placeholder("dni_context", default_value=None)
        set_record(context, NodeRecord(role="context", segment=0))
        return PassResult(graph_module, True)
