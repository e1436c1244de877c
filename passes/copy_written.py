"""Copy a decoupled tensor that the segment above writes to in place."""

import operator

from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from dni_fx import ops
from dni_fx.graph import NodeMeta, record_of
from dni_fx.passes.boundary import rewire, synthesizers_by_cut

__all__ = ["CopyWritten"]


class CopyWritten(PassBase):
    """Needs: `DecoupleCuts`. Leaves: an `ops.writable` (role "copy") of each tensor that the next segment writes to.

    `ops.inject` copies by itself.
    """

    def call(self, graph_module: GraphModule) -> PassResult:
        graph = graph_module.graph
        written: dict[int, frozenset[int]] = {}
        for node in graph.nodes:
            record = record_of(node)
            if record.segment is not None:
                written[record.segment] = written.get(record.segment, frozenset()) | record.mutates
        origin: dict[Node, Node] = {}  # a boundary's result -> the model's own value
        for cut, predictions in synthesizers_by_cut(graph).items():
            decoupled = next(iter(predictions[0].users))
            for following in [n for n in decoupled.users if n.target is operator.getitem]:
                value, prediction = (decoupled.args[i][following.args[1]] for i in (0, 2))  # type: ignore[index]
                assert isinstance(value, Node)
                origin[following] = origin.get(value, value)
                if record_of(origin[following]).storages & written.get(cut + 1, frozenset()):
                    with graph.inserting_after(following):
                        arguments = (following, prediction)
                        name = f"{following}_copy"
                        copied = graph.create_node("call_function", ops.writable, arguments, name=name)
                    copied.meta["dni"] = NodeMeta(role="copy", segment=cut, cut=cut)
                    rewire(following, copied, cut)
                    origin[copied] = origin[following]
        return PassResult(graph_module, True)
