"""Put both ends of each piece that the backward pass computes again into the graph."""

from collections.abc import Sequence

from torch.fx import Graph, GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from dni_fx import ops
from dni_fx.graph import NodeRecord, record_of, set_record
from dni_fx.passes.boundary import borrowed_name

__all__ = ["AddPieces"]


class AddPieces(PassBase):
    """Needs: all other passes, a module `dni.pieces`.

    Leaves: an `ops.begin_piece` before each piece, on the values, submodules, parameters and buffers that the piece
    uses, and an `ops.end_piece` behind the piece (role "piece"). Where a node that the rewrite added stands in a piece,
    the piece is split there.

    Args:
        pieces: The names of the first and the last node of each piece, in the order of the graph.
    """

    def __init__(self, pieces: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self.pieces = pieces

    def call(self, graph_module: GraphModule) -> PassResult:
        graph = graph_module.graph
        for index, piece in enumerate(_runs(graph, self.pieces)):
            _bracket(graph, index, piece)
        return PassResult(graph_module, True)


def _runs(graph: Graph, pieces: Sequence[tuple[str, str]]) -> list[list[Node]]:
    """The nodes of each piece, from its first to its last call."""
    last_of = dict(pieces)
    runs: list[list[Node]] = [[]]
    end: str | None = None
    for node in list(graph.nodes):
        end = last_of.get(node.name, end)
        inside = end is not None and record_of(node).role == "model"
        if inside and (node.op.startswith("call") or (runs[-1] and node.op == "get_attr")):
            runs[-1].append(node)
        elif runs[-1]:
            runs.append([])
        if node.name == end:
            end = None
            runs.append([])
    return [_up_to_last_call(run) for run in runs if run]


def _up_to_last_call(run: list[Node]) -> list[Node]:
    last = max(index for index, node in enumerate(run) if node.op.startswith("call"))
    return run[: last + 1]


def _bracket(graph: Graph, index: int, piece: Sequence[Node]) -> None:
    inputs: dict[Node, None] = {}
    read: dict[str, None] = {}
    called = {str(node.target): None for node in piece if node.op == "call_module"}
    for node in piece:
        for source in node.all_input_nodes:
            if source.op == "get_attr":
                read[str(source.target)] = None
            elif source not in piece:
                inputs[source] = None
    with graph.inserting_before(piece[0]):
        # In this order a trace of the code makes the nodes again: parameters are read before the call, and modules are
        # found in its arguments.
        tensors = [graph.create_node("get_attr", path, name=borrowed_name(path)) for path in read]
        pieces = graph.get_attr("dni.pieces")
        modules = [graph.create_node("get_attr", path, name=borrowed_name(path)) for path in called]
        begin = graph.call_function(ops.begin_piece, (pieces, index, tuple(inputs), (*tensors, *modules)))
    with graph.inserting_after(piece[-1]):
        end = graph.call_function(ops.end_piece, (begin,))
    for node in (*tensors, pieces, *modules, begin, end):
        set_record(node, NodeRecord(role="piece", segment=record_of(piece[0]).segment))
