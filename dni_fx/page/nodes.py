"""The nodes of a captured or rewritten graph as plain data for a page or a picture."""

from dataclasses import dataclass
from typing import Any

from torch import fx

from dni_fx.capture import line_of_node
from dni_fx.graph import NodeRecord, has_record, operation_name, record_of
from dni_fx.plans import Plan

__all__ = ["GraphNode", "nodes_of"]


@dataclass(frozen=True)
class GraphNode:
    """One operation of the model.

    Attributes:
        operation: The class of the module, or the name of the function, that the node calls.
        target: The path of the module, or the name of the argument.
        sources: The nodes whose values it takes.
        reads: The parameters, buffers and constants that it takes as values.
        scope: The module calls around the node, outermost first: the path, or path@n for call n + 1, and the class.
        keeps: The bytes that autograd keeps from this node on.
        line: The place and text of the line of the person's code.
    """

    name: str
    operation: str
    target: str
    sources: tuple[str, ...]
    reads: tuple[str, ...]
    segment: int
    scope: tuple[tuple[str, str], ...] = ()
    shape: tuple[int, ...] | None = None
    dtype: str = ""
    flops: int = 0
    backward_flops: int = 0
    keeps: int = 0
    parameters: tuple[str, ...] = ()
    line: tuple[str, str] = ("", "")


def nodes_of(graph: fx.Graph, plan: Plan) -> tuple[GraphNode, ...]:
    """The nodes of the plan in the order of the graph, without those that the rewrite added or that fetch a parameter.

    A loaded net has no record of its nodes: then they have no shape, cost, scope and line.
    """
    segment_of = {name: k for k, segment in enumerate(plan.segments) for name in segment.nodes}
    shown = {node: segment_of[node.name] for node in graph.nodes if node.name in segment_of and node.op != "get_attr"}
    made: dict[
        fx.Node, dict[fx.Node, None]
    ] = {}  # what each node passes on: itself, or what it takes if it is not shown
    result = []
    for node in graph.nodes:
        taken = {source: None for operand in node.all_input_nodes for source in made[operand]}
        made[node] = {node: None} if node in shown else taken
        if node in shown:
            result.append(_graph_node(node, [source.name for source in taken], shown[node]))
    return tuple(result)


def _graph_node(node: fx.Node, sources: list[str], segment: int) -> GraphNode:
    record = record_of(node) if has_record(node) else NodeRecord()
    scope = tuple(zip(record.scope, record.classes, strict=False))
    if node.op == "call_module" and scope:
        scope = scope[:-1]  # the last is the call of the module itself
    owner: Any = node.graph.owning_module
    return GraphNode(
        name=node.name,
        operation=type(owner.get_submodule(node.target)).__name__ if node.op == "call_module" else _name(node),
        target=str(node.target) if isinstance(node.target, str) else "",
        sources=tuple(sources),
        reads=tuple(str(operand.target) for operand in node.all_input_nodes if operand.op == "get_attr"),
        segment=segment,
        scope=scope,
        shape=record.shape,
        dtype="" if record.dtype is None else str(record.dtype).removeprefix("torch."),
        flops=record.flops,
        backward_flops=record.backward_flops if record.carries_gradient or record.mutates else 0,
        keeps=sum(record.saves.values()),
        parameters=record.parameters,
        line=line_of_node(node),
    )


def _name(node: fx.Node) -> str:
    return {"placeholder": "input", "output": "output"}.get(node.op) or operation_name(node)
