"""unlock="none": one differentiable op a crossing tensor, which hands the synthetic gradient upstream."""

from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from dni_fx import ops
from dni_fx.meta import NodeMeta
from dni_fx.passes.boundary import next_name, rewire, synthesizers_by_cut

__all__ = ["InjectCuts"]


class InjectCuts(PassBase):
    """Needs: `AddSynthesizers`. Leaves: an `ops.inject` for every crossing tensor (role "boundary").

    Args:
        mix: Share of the true gradient that is handed upstream (BP(lambda)).
    """

    def __init__(self, mix: float) -> None:
        super().__init__()
        self.mix = mix

    def call(self, graph_module: GraphModule) -> PassResult:
        graph = graph_module.graph
        for cut, predictions in synthesizers_by_cut(graph).items():
            last = predictions[-1]
            for prediction in predictions:
                detached = prediction.args[0]
                assert isinstance(detached, Node)
                output = detached.args[0]
                assert isinstance(output, Node)
                with graph.inserting_after(last):
                    arguments = (output, prediction, self.mix)
                    last = graph.create_node("call_function", ops.inject, arguments, name=next_name(output))
                last.meta["dni"] = NodeMeta(role="boundary", segment=cut, cut=cut)
                rewire(output, last, cut)
        return PassResult(graph_module, True)
