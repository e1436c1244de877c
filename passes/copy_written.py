"""Copy a decoupled tensor that the segment above writes to in place."""

import operator

from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from dni_fx import meta
from dni_fx.meta import NodeMeta
from dni_fx.passes.boundary import rewire, synthesizers_by_cut

__all__ = ["CopyWritten"]


class CopyWritten(PassBase):
    """Needs: `DecoupleCuts`. Leaves: a `clone` (role "copy") of each tensor whose memory the next segment writes to.

    What `ops.decouple` returns is a view: autograd refuses to let it be written to, and the synthesizer's saved
    input must not change either. `ops.inject` copies by itself.
    """

    def call(self, graph_module: GraphModule) -> PassResult:
        graph = graph_module.graph
        written: dict[int, frozenset[int]] = {}
        for node in graph.nodes:
            record = meta.of(node)
            if record.segment is not None:
                written[record.segment] = written.get(record.segment, frozenset()) | record.mutates
        origin: dict[Node, Node] = {}  # a boundary's result -> the model's own value
        for cut, predictions in synthesizers_by_cut(graph).items():
            decoupled = next(iter(predictions[0].users))
            for following in [n for n in decoupled.users if n.target is operator.getitem]:
                value = decoupled.args[0][following.args[1]]  # type: ignore[index]
                assert isinstance(value, Node)
                origin[following] = origin.get(value, value)
                if meta.of(origin[following]).storages & written.get(cut + 1, frozenset()):
                    with graph.inserting_after(following):
                        copied = graph.create_node("call_method", "clone", (following,), name=f"{following}_copy")
                    copied.meta["dni"] = NodeMeta(role="copy", segment=cut, cut=cut)
                    rewire(following, copied, cut)
                    origin[copied] = origin[following]
        return PassResult(graph_module, True)
