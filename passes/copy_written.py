"""Copy a decoupled tensor that the segment above writes to in place."""

import operator
from typing import Any

from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from dni_fx import ops
from dni_fx.graph import NodeRecord, record_of, set_record
from dni_fx.passes.boundary import origin, rewire, synthesizers_by_cut, written_above

__all__ = ["CopyWritten"]


class CopyWritten(PassBase):
    """Needs: `DecoupleCuts` with `ops.decouple`; `ops.inject` copies by itself.

    Leaves: an `ops.writable` (role "copy") of each tensor whose memory the next segment writes to, and everything
    above the cut on this copy.
    """

    def call(self, graph_module: GraphModule) -> PassResult:
        graph = graph_module.graph
        changed = False
        for cut, predictions in synthesizers_by_cut(graph).items():
            decoupled = next(iter(predictions[0].users))
            written = written_above(decoupled)
            for following in [n for n in decoupled.users if n.target is operator.getitem]:
                if not record_of(origin(following)).storages & written:
                    continue
                index: Any = following.args[1]
                with graph.inserting_after(following):
                    name = f"{following}_copy"
                    copied = graph.create_node(
                        "call_function", ops.writable, (following, predictions[index]), name=name
                    )
                set_record(copied, NodeRecord(role="copy", segment=record_of(following).segment, cut=cut))
                rewire(following, copied, cut)
                changed = True
        return PassResult(graph_module, changed)
