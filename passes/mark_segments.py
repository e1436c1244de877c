"""Number the segments, and write to every node the number of its segment."""

from collections.abc import Sequence

from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from dni_fx.graph import record_of

__all__ = ["MarkSegments"]


class MarkSegments(PassBase):
    """Needs: an annotated graph. Leaves: `record_of(node).segment` on every node, growing along the graph.

    Args:
        ends: The name of the last node of each segment but the last.
    """

    def __init__(self, ends: Sequence[str]) -> None:
        super().__init__()
        self.ends = set(ends)

    def call(self, graph_module: GraphModule) -> PassResult:
        segment = 0
        for node in graph_module.graph.nodes:
            record_of(node).segment = segment
            segment += node.name in self.ends
        return PassResult(graph_module, False)
