"""Run the nodes of a graph in another order."""

from collections.abc import Sequence

from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from dni_fx.errors import DniFxError
from dni_fx.graph import kept_order, lint, record_of

__all__ = ["ReorderNodes"]


class ReorderNodes(PassBase):
    """Needs: an annotated graph. Leaves: the same nodes in another order, in which they compute the same values.

    A storage that autograd keeps for several nodes is counted at the first of them.

    Args:
        names: Of all nodes, in the new order.

    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = names

    def call(self, graph_module: GraphModule) -> PassResult:
        graph = graph_module.graph
        reason = kept_order(graph).forbids(graph, self.names)
        if reason:
            raise DniFxError(f"the nodes cannot run in another order: {reason}")
        nodes = {node.name: node for node in graph.nodes}
        changed = list(nodes) != list(self.names)
        *moved, output = (nodes[name] for name in self.names)
        counted: set[int] = set()
        for node in moved:
            output.prepend(node)
        for node in graph.nodes:
            record = record_of(node)
            kept = record.saves | record.saves_again
            record.saves = {storage: size for storage, size in kept.items() if storage not in counted}
            record.saves_again = {storage: size for storage, size in kept.items() if storage in counted}
            counted |= kept.keys()
        lint(graph)
        graph_module.recompile()
        return PassResult(graph_module, changed)
