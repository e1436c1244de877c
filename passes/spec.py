"""What a legal graph is, on the way to a rewrite and after it: a list of rules, checked after every pass."""

from collections.abc import Callable, Iterator

from torch.fx import GraphModule, Node

from dni_fx import ops
from dni_fx.graph import record_of

__all__ = ["check"]

Rule = Callable[[GraphModule], Iterator[str]]


def _every_node_is_known(module: GraphModule) -> Iterator[str]:
    yield from (f"{n} has no record" for n in module.graph.nodes if "dni" not in n.meta)


def _segments_grow(module: GraphModule) -> Iterator[str]:
    highest = 0
    for node in module.graph.nodes:
        segment = record_of(node).segment
        if segment is not None:
            if segment < highest:
                yield f"{node} of segment {segment} comes after segment {highest}"
            highest = max(highest, segment)


def _no_gradient_path_goes_round_a_cut(module: GraphModule) -> Iterator[str]:
    """Once the boundaries stand, what carries gradient reaches a higher segment through one only."""
    if not any(record_of(n).role == "boundary" for n in module.graph.nodes):
        return
    for node in module.graph.nodes:
        record = record_of(node)
        for source in node.all_input_nodes:
            below = record_of(source)
            crosses = below.segment is not None and record.segment is not None and below.segment < record.segment
            if crosses and below.role == "model" and below.carries_gradient:
                yield f"{node} of segment {record.segment} uses {source} of segment {below.segment} directly"


def _one_boundary_an_edge(module: GraphModule) -> Iterator[str]:
    done: set[tuple[int | None, Node]] = set()
    for node in module.graph.nodes:
        if record_of(node).role == "detach":
            key = (record_of(node).cut, node.args[0])
            if key in done:
                yield f"{key[1]} has two synthesizers at cut {key[0]}"
            done.add(key)


def _synthesizers_are_impure(module: GraphModule) -> Iterator[str]:
    for node in module.graph.nodes:
        if record_of(node).role == "synthesizer" and not node.is_impure():
            yield f"dead code elimination would remove {node}"
        if node.target in (ops.decouple, ops.inject) and not node.is_impure():
            yield f"dead code elimination would remove {node}"


RULES: tuple[Rule, ...] = (
    _every_node_is_known,
    _segments_grow,
    _no_gradient_path_goes_round_a_cut,
    _one_boundary_an_edge,
    _synthesizers_are_impure,
)


def check(module: GraphModule, *, after: str) -> None:
    """Raise AssertionError with every rule that the graph breaks."""
    broken = [f"{rule.__name__.strip('_')}: {what}" for rule in RULES for what in rule(module)]
    if broken:
        raise AssertionError(f"after {after}: " + "; ".join(broken))
