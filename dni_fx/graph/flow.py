"""The graph as networkx sees it: the nodes in order, with the numbers that the search for cuts reads."""

from collections.abc import Mapping, Set
from typing import Any

import networkx as nx
from torch import fx

from dni_fx.graph.record import NodeMeta, record_of
from dni_fx.model import tensors_in

__all__ = ["dataflow"]

_SUMS = ("add", "add_", "iadd")


def dataflow(
    graph: fx.Graph,
    times: Mapping[str, tuple[float, float]] | None = None,
    handed_on: Set[str] = frozenset(),
) -> "nx.DiGraph[str]":
    """The graph as networkx sees it: nodes in order, with the attributes that the partitioner reads.

    Args:
        times: Measured seconds of each node, forward and backward, in place of FLOPs.
        handed_on: Nodes that the graph gives cut off, as a recurrent model's state: they go out round all cuts.

    Graph attribute: `largest`, the bytes of the largest trainable parameter.
    Node attributes, of what it costs: `forward` and `backward` (FLOPs), `owns` and `saves` (bytes by storage of what it
    makes, and of what autograd keeps for it and for none before), `gradient` (bytes of the gradients of the trainable
    parameters that it is the first to use), `sums` (it hands its gradient on as it is).
    Of what may be cut: `size` (bytes that cross a cut), `parameters` (how many trainable ones it uses), `matrix` (one
    of them is no vector), `crosses` (must get a synthesizer at a cut between it and its users), `legal` (it can get
    one), `tuple` (it is no single tensor), `kind` (for messages), `storages` and `mutates`, `obstacle` (why there can
    be no cut between it and its users), and `gains` (the node whose write makes it cross).
    """
    flow: nx.DiGraph[str] = nx.DiGraph()
    owner: Any = graph.owning_module
    parameters = dict(owner.named_parameters())
    unused = {name: p.nbytes for name, p in parameters.items() if p.requires_grad}
    flow.graph["largest"] = max(unused.values(), default=0)
    for node in graph.nodes:
        record = record_of(node)
        flow.add_node(
            node.name,
            forward=times[node.name][0] if times else record.flops,
            backward=times[node.name][1] if times else record.backward_flops,
            owns=record.owns,
            saves=record.saves,
            gradient=sum(unused.pop(name, 0) for name in record.parameters),
            parameters=len(record.parameters),
            sums=_is_sum(node),
            matrix=any(parameters[name].dim() > 1 for name in record.parameters),
            crosses=record.carries_gradient,
            legal=record.dtype is not None and record.dtype.is_floating_point and bool(record.shape),
            storages=record.storages,
            mutates=record.mutates,
            size=_size(node),
            kind=_kind(record),
            obstacle=record.obstacle,
            gains=record.gains,
            tuple=record.shape is None,
        )
        sources = [source.name for source in node.all_input_nodes]
        flow.add_edges_from((name, node.name) for name in sources if node.op != "output" or name not in handed_on)
    return flow


def _size(node: fx.Node) -> int:
    return sum(t.numel() * t.element_size() for t in tensors_in(node.meta.get("val")))


def _is_sum(node: fx.Node) -> bool:
    """Whether the gradients of what it adds up are its own."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    shapes = {record_of(source).shape for source in node.all_input_nodes}
    return name.split(".")[0] in _SUMS and not node.kwargs and shapes == {record_of(node).shape}


def _kind(record: NodeMeta) -> str:
    if record.dtype is None:
        return "no single tensor"
    return f"a {str(record.dtype).removeprefix('torch.')} tensor of shape {list(record.shape or ())}"
