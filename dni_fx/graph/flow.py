"""The graph in networkx: the nodes in order, with the numbers that the search for cuts reads."""

from collections.abc import Mapping, Set
from typing import Any

import networkx as nx
from torch import fx, nn

from dni_fx.graph.record import NodeRecord, operation_name, record_of, returned_nodes
from dni_fx.model import tensors_in
from dni_fx.partition import FlowNode, add_flow_node, set_largest_parameter

__all__ = ["dataflow"]

_ATTENTION = ("MultiheadAttention", "scaled_dot_product_attention", "multi_head_attention_forward")
_PRODUCTS = ("matmul", "bmm", "baddbmm", "einsum")
_SUMS = ("add", "add_", "iadd")


def dataflow(
    graph: fx.Graph,
    times: Mapping[str, tuple[float, float]] | None = None,
    states: Set[int] = frozenset(),
) -> "nx.DiGraph[str]":
    """Convert an annotated graph: nodes in order, with a `FlowNode` each, and the size of the largest parameter.

    Args:
        times: Measured seconds of each node, forward and backward, in place of FLOPs.
        states: Positions, among the nodes that the graph returns, of a recurrent model's state. The state is returned
            detached by the segment that makes it: as an output it crosses no cut.
    """
    flow: nx.DiGraph[str] = nx.DiGraph()
    owner: Any = graph.owning_module
    parameters = dict(owner.named_parameters())
    returned = [node.name for node in returned_nodes(graph)]
    state_nodes = {returned[i] for i in states}
    state_only = state_nodes - {name for i, name in enumerate(returned) if i not in states}
    unused = {name: p.nbytes for name, p in parameters.items() if p.requires_grad}
    set_largest_parameter(flow, max(unused.values(), default=0))
    for node in graph.nodes:
        record = record_of(node)
        forward, backward = times[node.name] if times else (record.flops, record.backward_flops)
        entry = FlowNode(
            forward=forward,
            backward=backward,
            owns=record.owns,
            saves=record.saves,
            gradient=sum(unused.pop(name, 0) for name in record.parameters),
            is_sum=_is_sum(node),
            is_layer=any(parameters[name].dim() > 1 for name in record.parameters) and record.flops > _bytes(node),
            mixes=_mixes_positions(node, parameters),
            takes_part=_takes_part(node),
            kind=f"{_operation(node)}: {_description(record)}",
            bytes=_bytes(node),
            parameters=len(record.parameters),
            has_matrix=any(parameters[name].dim() > 1 for name in record.parameters),
            carries_gradient=record.carries_gradient,
            can_have_synthesizer=record.dtype is not None and record.dtype.is_floating_point and bool(record.shape),
            is_tuple=record.shape is None,
            description=_description(record),
            storages=record.storages,
            mutates=record.mutates,
            is_state=node.name in state_nodes,
            obstacle=record.obstacle,
            gradient_from=record.gradient_from,
        )
        add_flow_node(flow, node.name, entry)
        sources = [source.name for source in node.all_input_nodes]
        flow.add_edges_from((name, node.name) for name in sources if node.op != "output" or name not in state_only)
    return flow


def _bytes(node: fx.Node) -> int:
    return sum(t.numel() * t.element_size() for t in tensors_in(node.meta.get("val")))


def _is_sum(node: fx.Node) -> bool:
    """Whether the node is a sum of tensors of one shape: its gradient is also the gradient of each term."""
    shapes = {record_of(source).shape for source in node.all_input_nodes}
    return operation_name(node) in _SUMS and not node.kwargs and shapes == {record_of(node).shape}


def _mixes_positions(node: fx.Node, parameters: Mapping[str, nn.Parameter]) -> bool:
    """Whether an entry of the value depends on other positions of the operand, such as neighbours."""
    operation = _operation(node)
    if operation in _ATTENTION or isinstance(_module(node), nn.RNNBase):
        return True
    if operation in _PRODUCTS:
        return sum(record_of(source).carries_gradient for source in node.all_input_nodes) > 1
    kernels = [parameters[name].shape[2:] for name in record_of(node).parameters]
    return "conv" in operation.lower() and any(max(kernel, default=1) > 1 for kernel in kernels)


def _takes_part(node: fx.Node) -> bool:
    """Whether the value is one entry of its operand along an axis, such as the class token of a sequence."""
    rank = len(record_of(node).shape or ())
    sources = [record_of(source).shape for source in node.all_input_nodes[:1]]
    return operation_name(node) in ("getitem", "select") and any(shape and len(shape) > rank for shape in sources)


def _operation(node: fx.Node) -> str:
    """The class of the module, or the name of the function, that a node calls."""
    module = _module(node)
    return operation_name(node) if module is None else type(module).__name__


def _module(node: fx.Node) -> nn.Module | None:
    """The module that a node calls."""
    owner: Any = node.graph.owning_module
    return owner.get_submodule(node.target) if node.op == "call_module" else None


def _description(record: NodeRecord) -> str:
    if record.dtype is None:
        return "no single tensor"
    return f"a {str(record.dtype).removeprefix('torch.')} tensor of shape {list(record.shape or ())}"
