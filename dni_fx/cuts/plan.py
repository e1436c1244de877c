"""From decided cuts to the plan, and the fingerprint of a graph."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import fx

from dni_fx.cost import CostModel, Pieces, SegmentCost, StepCost
from dni_fx.forecasts import most_in_parts
from dni_fx.graph import crossing_tensor, record_of
from dni_fx.partition import Position
from dni_fx.plans import Cut, Forecast, Outlook, Plan, SegmentPlan, Verdict
from dni_fx.synthesizers import FOR_MAPS

__all__ = ["Decision", "fingerprint", "make_plan", "outlook_of"]


class Decision(NamedTuple):
    """Where to cut."""

    cuts: tuple[Position, ...]  # in the order of the graph
    why: str
    verdict: Verdict | None = None  # of the search for the best cuts, if there was one
    for_maps: str = FOR_MAPS[0]  # the synthesizer of maps, where the user names none
    pieces: tuple[Pieces, ...] = ()  # of each segment, that its backward pass computes again


_PARTS = 200  # of a step, for the memory over it


def outlook_of(step_cost: StepCost) -> Outlook:
    return Outlook(round(step_cost.peak), step_cost.step, step_cost.slowest)


def _with_moments(outlook: Outlook, bytes_: Sequence[float]) -> Outlook:
    return replace(outlook, over_step=tuple(map(round, most_in_parts(bytes_, _PARTS))))


def fingerprint(graph: fx.Graph) -> str:
    """A digest of the operations of a graph without sizes: the same for any batch size."""
    numbers: dict[fx.Node, str] = {}
    lines = []

    def argument(node: fx.Node) -> str:
        return numbers[node]

    for node in graph.nodes:
        numbers[node] = f"%{len(numbers)}"
        target = node.target if isinstance(node.target, str) else fx.node._get_qualified_name(node.target)
        arguments = fx.node.map_arg((node.args, node.kwargs), argument)
        lines.append(f"{node.op} {target} {arguments}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def make_plan(
    model_name: str,
    graph: fx.Graph,
    cost_model: CostModel,
    decision: Decision,
    inputs: tuple[str, ...],
    inputs_from: str,
    frontend: str = "fx",
    tried: tuple[str, ...] = (),
) -> Plan:
    """The plan for the decided cuts of an annotated graph; `model_name` is the class of the model."""
    nodes = list(graph.nodes)
    by_name = {node.name: node for node in nodes}
    ends = [-1, *(p.index for p in decision.cuts), len(nodes) - 1]
    first = _first_uses(graph)
    predicted = cost_model.predict(decision.cuts, decision.pieces)
    backprop = _with_moments(outlook_of(cost_model.predict([])), cost_model.over_step([]))
    cut = _with_moments(outlook_of(predicted), cost_model.over_step(decision.cuts, decision.pieces))
    peak, time = cost_model.checkpointed(decision.cuts)
    return Plan(
        model=model_name,
        fingerprint=fingerprint(graph),
        inputs=inputs,
        inputs_from=inputs_from,
        cuts=tuple(Cut(p.after, tuple(crossing_tensor(by_name[n]) for n in p.crossing)) for p in decision.cuts),
        segments=tuple(
            _segment(nodes[i + 1 : j + 1], first, cost, [(nodes[a - 1].name, nodes[b - 1].name) for a, b in pieces])
            for i, j, cost, pieces in zip(
                ends[:-1], ends[1:], predicted.segments, decision.pieces or [()] * (len(ends) - 1), strict=True
            )
        ),
        why=decision.why,
        frontend=frontend,
        tried=tried,
        tied=_tied(nodes, ends),
        forecast=Forecast(
            cost_model.unit,
            predicted.resident,
            predicted.synthesizers,
            round(predicted.optimizer),
            backprop,
            cut,
            Outlook(round(peak), time, time),
        ),
        verdict=decision.verdict,
        for_maps=decision.for_maps,
    )


def _tied(nodes: Sequence[fx.Node], ends: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """The segments of each trainable parameter that several segments use."""
    users: dict[str, list[int]] = {}
    for k, (i, j) in enumerate(zip(ends[:-1], ends[1:], strict=True)):
        for name in dict.fromkeys(p for node in nodes[i + 1 : j + 1] for p in record_of(node).parameters):
            users.setdefault(name, []).append(k)
    return {name: tuple(segments) for name, segments in users.items() if len(segments) > 1}


def _first_uses(graph: fx.Graph) -> dict[fx.Node, int]:
    """For each node, the number of entries of the trainable parameters that the node is the first to use."""
    owner: Any = graph.owning_module
    sizes = {name: p.numel() for name, p in owner.named_parameters()}
    return {node: sum(sizes.pop(p, 0) for p in record_of(node).parameters) for node in graph.nodes}


def _segment(
    nodes: Sequence[fx.Node], first_uses: dict[fx.Node, int], cost: SegmentCost, pieces: Sequence[tuple[str, str]]
) -> SegmentPlan:
    records = [record_of(n) for n in nodes]
    return SegmentPlan(
        nodes=tuple(n.name for n in nodes),
        parameters=sum(first_uses[n] for n in nodes),
        flops=sum(r.flops for r in records),
        activation_bytes=sum(size for r in records for size in r.saves.values()),
        forward=cost.forward,
        backward=cost.backward,
        synthesizers=cost.synthesizers,
        load=cost.load,
        peak_bytes=round(cost.peak.bytes),
        peak_at=cost.peak.node,
        peak_backward=cost.peak.backward,
        recomputed=tuple(pieces),
    )
