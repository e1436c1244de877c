"""From what the person asks for (`cuts=...`) to places in the graph."""

import difflib
import hashlib
from collections.abc import Sequence, Set
from typing import Any, NamedTuple

import networkx as nx
from torch import fx

from dni_fx import choosing, marking, meta, positions
from dni_fx.choosing import Choice, Limits
from dni_fx.cost_model import CostModel, Prediction, SegmentCost
from dni_fx.errors import DniFxError
from dni_fx.planning import Cut, Forecast, Outlook, Plan, SegmentPlan, Tensor, Verdict, Weighed
from dni_fx.positions import Position
from dni_fx.units import bytes_text

__all__ = ["Cuts", "Decision", "choose", "fingerprint", "make_plan", "separated"]

Cuts = str | int | Sequence[str] | Plan


class Decision(NamedTuple):
    """Where to cut."""

    cuts: tuple[Position, ...]  # in the order of the graph
    why: str
    verdict: Verdict | None = None  # where it was up to us


def choose(graph: fx.Graph, model: CostModel, cuts: Cuts, limits: Limits, among: Set[str] = frozenset()) -> Decision:
    """The cuts that were asked for.

    Args:
        model: What any cuts of the graph cost.
        limits: For "auto" and a number of segments.
        among: Where these look first.

    Raises:
        DniFxError: If `cuts` names what is not there, or what cannot be cut, or the limits cannot be kept.
        NoLegalCutError: If the model has no legal cut at all, or none that keeps the memory budget.
    """
    decision = _decide(graph, model, cuts, limits, among)
    refusals = [refusal for cut in decision.cuts if (refusal := model.refusal(cut))]
    if refusals:
        raise DniFxError(refusals[0])
    return decision


def _decide(graph: fx.Graph, model: CostModel, cuts: Cuts, limits: Limits, among: Set[str]) -> Decision:
    flow = model.flow
    if isinstance(cuts, int) and cuts < 2:  # True and False too
        raise DniFxError(f"cuts={cuts!r}: a number of segments is 2 or more")
    if isinstance(cuts, int) or cuts == "auto":
        return _automatic(model, cuts if isinstance(cuts, int) else None, limits, among)
    if limits != Limits():
        raise DniFxError("objective, memory budget and synthesizer share are for cuts='auto' or a number of segments")
    if isinstance(cuts, Plan):
        return Decision(_from_plan(graph, flow, cuts), f"a saved plan: {cuts.why.removeprefix('a saved plan: ')}")
    if cuts == "marked":
        return Decision(_marked(graph, flow), "where the model's code says dni_fx.cut_after()")
    if isinstance(cuts, str) and cuts.startswith("every:"):
        return _every(graph, flow, cuts.removeprefix("every:"))
    if cuts == "leaves":
        return _leaves(graph, flow)
    names = [cuts] if isinstance(cuts, str) else cuts
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise DniFxError(
            f"cuts={cuts!r} is not 'auto', a number of segments, names of modules or nodes, 'every:Class', "
            "'leaves', 'marked' or a Plan"
        )
    if not names:
        raise DniFxError("no cuts given: name a module or node to cut after, or say auto")
    everywhere, calls = positions.find(flow), _calls(graph)
    chosen = {p.index: p for name in names for p in _after(flow, everywhere, calls, name)}
    return Decision(separated(flow, [chosen[i] for i in sorted(chosen)]), f"after {', '.join(names)}, as asked for")


def _automatic(model: CostModel, segments: int | None, limits: Limits, among: Set[str]) -> Decision:
    most = max(positions.MOST_CANDIDATES, 4 * (segments or 0))
    everywhere = positions.candidates(model.flow, among, most)
    candidates = [c for c in everywhere if not model.refusal(c.position)]
    if not candidates:
        raise DniFxError(model.refusal(everywhere[0].position))
    if segments is not None and segments > len(candidates) + 1 and limits.budget is None:
        raise DniFxError(f"cannot make {segments} segments: the model has legal cuts for {len(candidates) + 1} at most")
    found, others, share = choosing.choose(model, candidates, segments, limits)
    verdict = Verdict(
        objective=limits.objective,
        places=len(candidates),
        bound=found.bound,
        share=share,
        weighed=tuple(_weighed(model, choice) for choice in (found, *others)),
    )
    asked = "auto" if segments is None else f"{segments} segments asked for"
    if limits.budget is not None:
        asked += f", the fewest segments that fit into {bytes_text(limits.budget)}"
    proof = "optimal"
    if not verdict.optimal:
        gap = f"{100 * (found.value / found.bound - 1):.2g} %" if found.bound > 0 else "an unknown share"
        proof = f"within {gap} of the best there can be"
    why = f"{asked}: {proof} for {limits.objective} and charges, among {len(candidates)} places"
    if limits.share is None and found.share > choosing.SHARE:
        why += f"; the synthesizers take {100 * found.share:.2g} % of backprop's step"
    return Decision(found.cuts, why, verdict)


def _weighed(model: CostModel, choice: Choice) -> Weighed:
    names = tuple(p.after for p in choice.cuts)
    count = sum(len(p.crossing) for p in choice.cuts)
    return Weighed(names, count, choice.value, choice.charges, choice.share, _outlook(model.predict(choice.cuts)))


def _outlook(prediction: Prediction) -> Outlook:
    return Outlook(round(prediction.peak), prediction.step, prediction.slowest)


def _calls(graph: fx.Graph) -> dict[tuple[str, str], fx.Node]:
    """The last node of every module call: by qualified name and by a key of the call."""
    last: dict[tuple[str, str], fx.Node] = {}
    for node in graph.nodes:
        for key in meta.of(node).scope:
            last[key.split("@")[0], key] = node
    return last


def _after(
    flow: "nx.DiGraph[str]", everywhere: list[Position], calls: dict[tuple[str, str], fx.Node], name: str
) -> list[Position]:
    """After every call of the module of that name, else after the node of that name."""
    ends = [node for (module, _), node in calls.items() if module == name]
    if ends:
        return [positions.snap(flow, everywhere, node.name, name) for node in ends]
    if name in flow:
        return [positions.snap(flow, everywhere, name, name)]
    known = list(dict.fromkeys([module for module, _ in calls] + list(flow)))
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"; the nearest names are {', '.join(near)}" if near else f"; there are {', '.join(known[:8])}"
    raise DniFxError(f"no module or node called {name!r} to cut after{hint}")


def _every(graph: fx.Graph, flow: "nx.DiGraph[str]", wanted: str) -> Decision:
    last: dict[str, fx.Node] = {}
    classes: set[str] = set()
    for node in graph.nodes:
        record = meta.of(node)
        classes.update(record.classes)
        last.update({key: node for key, cls in zip(record.scope, record.classes, strict=True) if cls == wanted})
    if not last:
        near = difflib.get_close_matches(wanted, sorted(classes), n=3) or sorted(classes)[:8]
        raise DniFxError(f"the graph calls no module of class {wanted!r}; the nearest are {', '.join(near)}")
    return _after_calls(flow, list(last.values()), wanted)


def _leaves(graph: fx.Graph, flow: "nx.DiGraph[str]") -> Decision:
    """After every call of a module without children that trains, but the last."""
    owner: Any = graph.owning_module
    names = {name for name, m in owner.named_modules() if not [*m.children()]}
    trained = {name for name in names if any(p.requires_grad for p in owner.get_submodule(name).parameters())}
    ends = [node for (name, _), node in _calls(graph).items() if name in trained]
    if len(ends) < 2:
        raise DniFxError("cuts='leaves': the graph calls fewer than two layers that train")
    return _after_calls(flow, sorted(ends)[:-1], "a layer that trains, but the last")


def _after_calls(flow: "nx.DiGraph[str]", ends: Sequence[fx.Node], what: str) -> Decision:
    """After each of these nodes where that is a legal cut."""
    everywhere = positions.find(flow)
    order = {name: i for i, name in enumerate(flow)}
    places = sorted({order[node.name] for node in ends})
    legal = [everywhere[i] for i in places if i < len(everywhere) and not everywhere[i].obstacle]
    if not legal:
        reason = everywhere[places[0]].obstacle if places[0] < len(everywhere) else "nothing comes after it"
        raise DniFxError(f"no call of {what} is a legal cut: {reason}")
    skipped = len(ends) - len(legal)
    note = f" ({skipped} of {len(ends)} calls are no legal cut)" if skipped else ""
    return Decision(separated(flow, legal, drop=True), f"after every call of {what}{note}")


def _marked(graph: fx.Graph, flow: "nx.DiGraph[str]") -> tuple[Position, ...]:
    """After the last node of each `with dni_fx.cut_after():` block that ran."""
    last = {mark: node for node in graph.nodes for mark in [marking.mark_of(node)] if mark is not None}
    if not last:
        raise DniFxError(
            "cuts='marked': the graph holds no mark. Say `with dni_fx.cut_after(): h = ...` in forward; a mark is not "
            "seen inside a module that is kept whole, nor by the front end modules"
        )
    everywhere = positions.find(flow)
    found = [positions.snap(flow, everywhere, node.name, f"the mark at {node}") for node in last.values()]
    chosen = {position.index: position for position in found}
    return separated(flow, [chosen[i] for i in sorted(chosen)])


def separated(flow: "nx.DiGraph[str]", chosen: list[Position], *, drop: bool = False) -> tuple[Position, ...]:
    """Check that every segment uses a trainable parameter."""
    names = list(flow)
    kept: list[Position] = []
    start = 0
    for position in chosen:
        if not any(flow.nodes[n]["parameters"] for n in names[start : position.index + 1]):
            if drop:
                continue
            raise DniFxError(
                f"the segment between the cuts after {kept[-1].after!r} and {position.after!r} uses no trainable "
                "parameter: drop one of the two"
            )
        kept.append(position)
        start = position.index + 1
    if not any(flow.nodes[n]["parameters"] for n in names[start:]):
        raise DniFxError(f"no trainable parameter is used after {kept[-1].after!r}: drop that cut")
    return tuple(kept)


def _from_plan(graph: fx.Graph, flow: "nx.DiGraph[str]", plan: Plan) -> tuple[Position, ...]:
    if plan.fingerprint != fingerprint(graph):
        missing = [cut.after for cut in plan.cuts if cut.after not in flow]
        detail = f": no node {missing[0]!r}" if missing else ""
        raise DniFxError(
            f"the plan was made for another graph (of {plan.model}){detail}; make a new one: dni-fx plan TARGET"
        )
    everywhere = {p.after: p for p in positions.find(flow)}
    chosen = [everywhere[cut.after] for cut in plan.cuts if cut.after in everywhere]
    bad = [p for p in chosen if p.obstacle]
    if bad or len(chosen) != len(plan.cuts) or not chosen:
        raise DniFxError(f"the plan does not hold legal cuts{': ' + bad[0].obstacle if bad else ''}")
    return separated(flow, sorted(chosen, key=lambda p: p.index))


def fingerprint(graph: fx.Graph) -> str:
    """A digest of what the graph computes, without sizes: the same for any batch size."""
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
    name: str,
    graph: fx.Graph,
    model: CostModel,
    decision: Decision,
    inputs: tuple[str, ...],
    inputs_from: str,
    frontend: str = "fx",
    tried: tuple[str, ...] = (),
) -> Plan:
    """The plan for these cuts of an annotated graph of the class called `name`."""
    nodes = list(graph.nodes)
    by_name = {node.name: node for node in nodes}
    ends = [-1, *(p.index for p in decision.cuts), len(nodes) - 1]
    first = _first_uses(graph)
    predicted = model.predict(decision.cuts)
    backprop, cut = _outlook(model.predict([])), _outlook(predicted)
    return Plan(
        model=name,
        fingerprint=fingerprint(graph),
        inputs=inputs,
        inputs_from=inputs_from,
        cuts=tuple(Cut(p.after, tuple(_tensor(by_name[n]) for n in p.crossing)) for p in decision.cuts),
        segments=tuple(
            _segment(nodes[i + 1 : j + 1], first, cost)
            for i, j, cost in zip(ends[:-1], ends[1:], predicted.segments, strict=True)
        ),
        why=decision.why,
        frontend=frontend,
        tried=tried,
        tied=_tied(nodes, ends),
        forecast=Forecast(
            model.unit, predicted.resident, predicted.synthesizers, round(predicted.optimizer), backprop, cut
        ),
        verdict=decision.verdict,
    )


def _tied(nodes: Sequence[fx.Node], ends: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Trainable parameters that several segments use, and which."""
    users: dict[str, list[int]] = {}
    for k, (i, j) in enumerate(zip(ends[:-1], ends[1:], strict=True)):
        for name in dict.fromkeys(p for node in nodes[i + 1 : j + 1] for p in meta.of(node).parameters):
            users.setdefault(name, []).append(k)
    return {name: tuple(segments) for name, segments in users.items() if len(segments) > 1}


def _first_uses(graph: fx.Graph) -> dict[fx.Node, int]:
    """How many entries of trainable parameters each node is the first to use."""
    owner: Any = graph.owning_module
    sizes = {name: p.numel() for name, p in owner.named_parameters()}
    return {node: sum(sizes.pop(p, 0) for p in meta.of(node).parameters) for node in graph.nodes}


def _tensor(node: fx.Node) -> Tensor:
    record = meta.of(node)
    assert record.shape is not None and record.dtype is not None
    size = node.meta["val"].numel() * record.dtype.itemsize
    return Tensor(node.name, record.shape, str(record.dtype).removeprefix("torch."), size, record.axis)


def _segment(nodes: Sequence[fx.Node], first_uses: dict[fx.Node, int], cost: SegmentCost) -> SegmentPlan:
    records = [meta.of(n) for n in nodes]
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
    )
