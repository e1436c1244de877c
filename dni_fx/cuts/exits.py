"""Exits at decided cuts: which later nodes of the model run there, and whose weights they use."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import networkx as nx
from torch import fx, nn

from dni_fx.errors import DniFxError
from dni_fx.graph import operation_name, record_of, returned_nodes
from dni_fx.partition import Position, Route, find_positions, find_route
from dni_fx.plans import ExitPlan, Plan
from dni_fx.synthesizers import ExitOptions

__all__ = ["ExitPlanner", "exit_planner", "with_exits"]

ExitPlanner = Callable[[Position], ExitPlan | None]

_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)


def exit_planner(
    graph: fx.Graph, flow: "nx.DiGraph[str]", options: ExitOptions, *, has_loss: bool
) -> ExitPlanner:
    """A function that plans the exit of any cut of an annotated graph; it returns None where there is no exit.

    Args:
        has_loss: There is a loss of the outputs; else the model returns its own.

    Raises:
        DniFxError: If there is neither.
    """
    by_name = {node.name: node for node in graph.nodes}
    loss = None if has_loss else _own_loss(graph)
    if not has_loss and loss is None:
        raise DniFxError(
            "an exit ends in the loss: give loss=, such as loss=\"cross_entropy\" (the net then takes the target as "
            "dni_context), or a model that returns its own loss"
        )
    ends = [loss.name] if loss is not None else [node.name for node in returned_nodes(graph)]
    target = _input_like_output(graph) if has_loss else ""
    units = None if options.units == "all" else int(options.units)

    @cache
    def planned(position: Position) -> ExitPlan | None:
        route = find_route(flow, position, ends, units)
        if route is None:
            return None
        nodes = [by_name[name] for name in route.nodes if by_name[name].op not in ("get_attr", "placeholder")]
        return _plan(nodes, position, route, options, "" if loss is None else loss.name, target)

    return planned


def with_exits(plan: Plan, flow: "nx.DiGraph[str]", planner: ExitPlanner | None) -> Plan:
    """A plan with the exits of its cuts; without exits, if there is no planner.

    Raises:
        DniFxError: If a cut can have no exit.
    """
    if planner is None:
        return replace(plan, cuts=tuple(replace(cut, exit=None) for cut in plan.cuts))
    positions = {position.after: position for position in find_positions(flow)}
    cuts = []
    for cut in plan.cuts:
        found = planner(positions[cut.after])
        if found is None:
            raise DniFxError(f"no exit from the cut after {cut.after}: the loss does not depend on what crosses it")
        cuts.append(replace(cut, exit=found))
    return replace(plan, cuts=tuple(cuts))


def _own_loss(graph: fx.Graph) -> fx.Node | None:
    """The node of the loss that a model returns itself: the one scalar that carries gradient among its outputs."""
    scalars = [n for n in returned_nodes(graph) if record_of(n).shape == () and record_of(n).carries_gradient]
    return scalars[0] if len(set(scalars)) == 1 else None


def _plan(
    nodes: list[fx.Node], position: Position, route: Route, options: ExitOptions, loss: str, target: str
) -> ExitPlan:
    inputs: dict[str, None] = {}
    borrowed: dict[str, None] = {}
    runs = {node.name for node in nodes}
    for node in nodes:
        if node.op == "call_module":
            borrowed[str(node.target)] = None
        for source in node.all_input_nodes:
            if source.op == "get_attr":
                borrowed[str(source.target)] = None
            elif source.name not in runs and source.name not in position.crossing and source.name not in route.bypassed:
                inputs[source.name] = None
    weights = options.weights
    if weights == "auto":
        weights = "copy" if any(map(_is_batch_norm, nodes)) else "shared"
    return ExitPlan(
        units=None if options.units == "all" else route.units,
        weights=weights,
        nodes=tuple(node.name for node in nodes),
        bypassed=route.bypassed,
        inputs=tuple(inputs),
        borrowed=tuple(borrowed),
        loss=loss,
        target=target,
        writes=any(record_of(node).mutates for node in nodes),
        flops=sum(record_of(node).flops for node in nodes),
    )


def _is_batch_norm(node: fx.Node) -> bool:
    """Whether a node uses the statistics of a batch."""
    if node.op != "call_module":
        return "batch_norm" in operation_name(node)
    owner: Any = node.graph.owning_module
    return any(isinstance(module, _BATCH_NORMS) for module in owner.get_submodule(str(node.target)).modules())


def _input_like_output(graph: fx.Graph) -> str:
    """The input that is the target of an autoencoder: the first one, if it has the shape and dtype of the one output."""
    outputs = returned_nodes(graph)
    first = next((node for node in graph.nodes if node.op == "placeholder" and record_of(node).shape), None)
    if len(outputs) != 1 or first is None or not len(record_of(first).shape or ()) > 1:
        return ""
    records = record_of(first), record_of(outputs[0])
    return first.name if records[0].shape == records[1].shape and records[0].dtype == records[1].dtype else ""
