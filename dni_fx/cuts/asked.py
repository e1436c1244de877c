"""Cuts that the user asks for: by name, by class, by layer, by mark, by a saved plan."""

import difflib
from collections.abc import Callable, Sequence
from typing import Any

import networkx as nx
from torch import fx

from dni_fx.cuts.plan import Decision, fingerprint
from dni_fx.errors import DniFxError, described
from dni_fx.graph import mark_of, record_of
from dni_fx.partition import Position, find_positions, flow_node, position_after
from dni_fx.passes.reorder_nodes import ReorderNodes
from dni_fx.plans import Plan
from dni_fx.runtime import DecoupledModule

__all__ = [
    "after_every",
    "after_layers",
    "check_graph",
    "last_nodes",
    "positions_after",
    "positions_of_marks",
    "positions_of_plan",
    "separated",
]


def last_nodes(graph: fx.Graph) -> dict[tuple[str, str], fx.Node]:
    """The last node of every module call, by the qualified name of the module and the key of the call."""
    owner: Any = graph.owning_module
    modules = dict(owner.named_modules(remove_duplicate=False))
    last: dict[tuple[str, str], fx.Node] = {}
    for node in graph.nodes:
        for key in record_of(node).scope:
            last[key if key in modules else key.rsplit("@", 1)[0], key] = node
    return last


def positions_after(
    flow: "nx.DiGraph[str]", positions: list[Position], calls: dict[tuple[str, str], fx.Node], name: str
) -> list[Position]:
    """The cuts after every call of the module `name`; if there is no such module, the cut after the node `name`."""
    ends = [node for (module, _), node in calls.items() if module == name]
    if ends:
        return [position_after(flow, positions, node.name, name) for node in ends]
    if name in flow:
        return [position_after(flow, positions, name, name)]
    known = list(dict.fromkeys([module for module, _ in calls] + list(flow)))
    raise DniFxError(f"no module or node called {described(name)} to cut after{_hint(name, known)}")


def _hint(name: str, known: list[str]) -> str:
    """The names that are like a wrong one, or some of all; and the way to list all."""
    near = difflib.get_close_matches(name, known, n=3)
    if near:
        shown = f"; the nearest names are {', '.join(near)}"
    elif len(known) <= _FEW:
        return f"; there are {', '.join(known)}"
    else:
        shown = f"; there are {', '.join(known[:_FEW])} and {len(known) - _FEW} more"
    return f"{shown}; `dni-fx inspect TARGET` lists places to cut"


_FEW = 8  # the names that an error lists

Refusal = Callable[[Position], str]  # why no synthesizer fits there; empty: one does


def after_every(graph: fx.Graph, flow: "nx.DiGraph[str]", wanted: str, refusal: Refusal) -> Decision:
    """Cut after every call of a module of the class `wanted`, where a cut is legal and a synthesizer fits."""
    last: dict[str, fx.Node] = {}
    classes: set[str] = set()
    for node in graph.nodes:
        record = record_of(node)
        classes.update(record.classes)
        last.update({key: node for key, cls in zip(record.scope, record.classes, strict=True) if cls == wanted})
    if not last:
        there = ", ".join(sorted(classes)) or "none"
        raise DniFxError(f"the graph calls no module of class {wanted!r}; the classes are {there}")
    return _after_calls(flow, list(last.values()), wanted, refusal)


def after_layers(graph: fx.Graph, flow: "nx.DiGraph[str]", refusal: Refusal) -> Decision:
    """Cut after every call of a trainable module without children, except the last, as `after_every` does."""
    owner: Any = graph.owning_module
    names = {name for name, m in owner.named_modules() if not [*m.children()]}
    trained = {name for name in names if any(p.requires_grad for p in owner.get_submodule(name).parameters())}
    ends = [node for (name, _), node in last_nodes(graph).items() if name in trained]
    if len(ends) < 2:
        raise DniFxError("cuts='leaves': the graph calls fewer than two layers that train")
    return _after_calls(flow, sorted(ends)[:-1], "a layer that trains, but the last", refusal)


def _after_calls(flow: "nx.DiGraph[str]", ends: Sequence[fx.Node], what: str, refusal: Refusal) -> Decision:
    """Cut after each of these nodes where a cut is legal and a synthesizer fits."""
    positions = find_positions(flow)
    order = {name: i for i, name in enumerate(flow)}
    places = sorted({order[node.name] for node in ends})
    reached = [positions[i] for i in places if i < len(positions)]
    legal = [position for position in reached if not (position.obstacle or refusal(position))]
    if not legal:
        reason = reached[0].obstacle or refusal(reached[0]) if reached else "nothing comes after it"
        raise DniFxError(f"no call of {what} is a legal cut: {reason}")
    skipped = len(ends) - len(legal)
    note = f" ({skipped} of {len(ends)} calls are no legal cut)" if skipped else ""
    return Decision(separated(flow, legal, drop=True), f"after every call of {what}{note}")


def positions_of_marks(graph: fx.Graph, flow: "nx.DiGraph[str]") -> tuple[Position, ...]:
    """The cuts after the last node of each `with dni_fx.cut_after():` block that ran."""
    last = {mark: node for node in graph.nodes for mark in [mark_of(node)] if mark is not None}
    if not last:
        raise DniFxError(
            "cuts='marked': the graph holds no mark. Write `with dni_fx.cut_after(): h = ...` in forward; a mark is "
            "not seen inside a module that is kept whole, nor by the front end modules"
        )
    positions = find_positions(flow)
    found = [position_after(flow, positions, node.name, f"the mark at {node}") for node in last.values()]
    chosen = {position.index: position for position in found}
    return separated(flow, [chosen[i] for i in sorted(chosen)])


def separated(flow: "nx.DiGraph[str]", chosen: list[Position], *, drop: bool = False) -> tuple[Position, ...]:
    """Check that every segment uses a trainable parameter.

    Args:
        drop: If a segment below a cut uses none, drop this cut in place of an error.
    """
    names = list(flow)
    kept: list[Position] = []
    start = 0
    for position in chosen:
        if not any(flow_node(flow, n).parameters for n in names[start : position.index + 1]):
            if drop:
                continue
            raise DniFxError(
                f"the segment between the cuts after {kept[-1].after!r} and {position.after!r} uses no trainable "
                "parameter: drop one of the two"
            )
        kept.append(position)
        start = position.index + 1
    if not any(flow_node(flow, n).parameters for n in names[start:]):
        raise DniFxError(f"no trainable parameter is used after {kept[-1].after!r}: drop that cut")
    return tuple(kept)


def check_graph(module: DecoupledModule, plan: Plan) -> None:
    """Put the nodes of a captured graph into the order of a saved plan.

    Raises:
        DniFxError: If the plan was made for another graph, or the nodes may not run in its order.
    """
    names = [name for segment in plan.segments for name in segment.nodes]
    traced = [node.name for node in module.graph.nodes]
    if module.dni_runs_graph and names != traced and sorted(names) == sorted(traced):
        ReorderNodes(names)(module)
    if plan.fingerprint != fingerprint(module.graph):
        missing = [cut.after for cut in plan.cuts if cut.after not in traced]
        detail = f": no node {missing[0]!r}" if missing else ""
        raise DniFxError(
            f"the plan was made for another graph (of {plan.model}){detail}; make a new one: dni-fx plan TARGET"
        )


def positions_of_plan(flow: "nx.DiGraph[str]", plan: Plan) -> tuple[Position, ...]:
    """The cuts of a saved plan."""
    positions = {p.after: p for p in find_positions(flow)}
    chosen = [positions[cut.after] for cut in plan.cuts if cut.after in positions]
    bad = [p for p in chosen if p.obstacle]
    if bad or len(chosen) != len(plan.cuts) or not chosen:
        raise DniFxError(f"the plan does not hold legal cuts{': ' + bad[0].obstacle if bad else ''}")
    return separated(flow, sorted(chosen, key=lambda p: p.index))
