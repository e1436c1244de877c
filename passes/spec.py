"""What a legal graph is, during a rewrite and after it: a list of rules, checked after every pass."""

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch.fx import Graph, Node

from dni_fx import ops
from dni_fx.graph import has_record, record_of, returned_nodes
from dni_fx.passes.boundary import BOUNDARIES, origin, passed_on, written_above, written_by_segment

__all__ = ["RULES", "Stage", "check"]

_IMPURE = (*BOUNDARIES, ops.begin_unit, ops.enter, ops.leave, ops.leaves, ops.begin_piece, ops.end_piece)


@dataclass(frozen=True)
class Stage:
    """A graph between two passes."""

    graph: Graph
    captured: Mapping[Node, str]  # the nodes before the first pass, with their names
    done: tuple[str, ...]  # the class names of the passes so far

    def calls(self, *targets: Callable[..., object]) -> list[Node]:
        return [node for node in self.graph.nodes if node.target in targets]


Rule = Callable[[Stage], Iterator[str]]


def every_node_has_a_record(stage: Stage) -> Iterator[str]:
    yield from (f"{node} has no record" for node in stage.graph.nodes if not has_record(node))


def captured_names_stay(stage: Stage) -> Iterator[str]:
    """Plans name the captured nodes. A pass adds and rewires nodes; only the elements of a tuple may be dropped."""
    present = set(stage.graph.nodes)
    for node, name in stage.captured.items():
        if node.name != name:
            yield f"captured node {name} is now named {node.name}"
        if node not in present and node.target is not operator.getitem:
            yield f"captured node {name} is gone"


def segments_grow(stage: Stage) -> Iterator[str]:
    highest = 0
    for node in stage.graph.nodes:
        segment = record_of(node).segment
        if segment is not None:
            if segment < highest:
                yield f"{node} of segment {segment} comes after segment {highest}"
            highest = max(highest, segment)


def memory_written_above_a_cut_crosses_it_once(stage: Stage) -> Iterator[str]:
    """Before boundaries stand: the segment above writes to a copy of one value, and no other value sees that."""
    if stage.calls(*BOUNDARIES):
        return
    last_write = {s: segment for segment, written in sorted(written_by_segment(stage.graph).items()) for s in written}
    crossing: dict[tuple[int, int], list[Node]] = {}
    for node in stage.graph.nodes if last_write else ():
        segment = record_of(node).segment
        last_use = max((record_of(user).segment or 0 for user in node.users), default=0)
        for storage in record_of(node).storages & last_write.keys():
            for cut in range(segment or 0, min(last_use, last_write[storage])):
                crossing.setdefault((cut, storage), []).append(node)
    for (cut, _), values in crossing.items():
        if len(values) > 1:
            names = ", ".join(value.name for value in values)
            yield f"{names} share memory and cross cut {cut}, and segment {cut + 1} or a later one writes to it"


def states_are_not_written_to_above(stage: Stage) -> Iterator[str]:
    """A state is returned by the segment that makes it, so a later segment must not write to its memory."""
    written = written_by_segment(stage.graph)
    for detached in _detached_states(stage):
        state, segment = _state_of(detached), record_of(detached).segment or 0
        for later, storages in written.items():
            if later > segment and storages & record_of(state).storages:
                yield f"segment {later} writes to the state {state}, which segment {segment} returns"


def no_gradient_path_goes_round_a_cut(stage: Stage) -> Iterator[str]:
    """At a cut that has a boundary: what carries gradient reaches a higher segment through the boundary only."""
    cuts = {record_of(node).cut for node in stage.graph.nodes if record_of(node).role == "boundary"}
    for node in stage.graph.nodes:
        record = record_of(node)
        for source in node.all_input_nodes:
            below = record_of(source)
            ends = below.segment, record.segment
            crosses = None not in ends and any(cut in cuts for cut in range(*ends))  # type: ignore[arg-type]
            if crosses and below.role == "model" and below.carries_gradient and node.target is not ops.decouple_unit:
                yield f"{node} of segment {record.segment} uses {source} of segment {below.segment} directly"


def one_synthesizer_an_edge(stage: Stage) -> Iterator[str]:
    """A value has one synthesizer at a cut."""
    found: set[tuple[int, object]] = set()
    for node in stage.graph.nodes:
        cut = record_of(node).cut
        if record_of(node).role == "detach" and cut is not None:
            if (cut, node.args[0]) in found:
                yield f"{node.args[0]} has two synthesizers at cut {cut}"
            found.add((cut, node.args[0]))


def decoupled_values_are_copied_before_a_write(stage: Stage) -> Iterator[str]:
    """After `CopyWritten`: autograd forbids a write to a result of `ops.decouple`, and the synthesizer has saved it."""
    copied = "CopyWritten" in stage.done and written_by_segment(stage.graph)
    for decoupled in stage.calls(ops.decouple, ops.decouple_unit) if copied else ():
        written = written_above(decoupled)
        for value in decoupled.users:
            if record_of(origin(value)).storages & written:
                for user in [user for user in value.users if user.target is not ops.writable]:
                    yield f"{user} uses {value}, not its copy, and the segment above the cut writes to that memory"


def dead_code_elimination_keeps_what_trains(stage: Stage) -> Iterator[str]:
    for node in stage.graph.nodes:
        trains = record_of(node).role == "synthesizer" or node.target in _IMPURE
        if trains and not node.is_impure():
            yield f"dead code elimination would remove {node}"


def states_are_cut_off_once(stage: Stage) -> Iterator[str]:
    for detached in _detached_states(stage):
        if record_of(_state_of(detached)).role == "detach":
            yield f"{detached} cuts off {_state_of(detached)}, which is cut off"


def time_cuts_have_two_ends(stage: Stage) -> Iterator[str]:
    """A cut in time has one `ops.enter` and one `ops.leave`, for as many states."""
    ends: dict[object, list[Node]] = {}
    for node in stage.calls(ops.enter, ops.leave):
        cut: Any = node.args[-1]
        ends.setdefault(cut.target, []).append(node)
    for name, nodes in ends.items():
        enters, leaves = ([n for n in nodes if n.target is end] for end in (ops.enter, ops.leave))
        if len(enters) != 1 or len(leaves) != 1:
            yield f"{name} has {len(enters)} calls of ops.enter and {len(leaves)} of ops.leave"
        elif len(_states(enters[0])) != len(_states(leaves[0])):
            counts = len(_states(enters[0])), len(_states(leaves[0]))
            yield f"{enters[0]} takes {counts[0]} states of {name}, and {leaves[0]} returns {counts[1]}"


def states_come_in_through_enter(stage: Stage) -> Iterator[str]:
    """A state is an input, and `ops.enter` is its one user; a tuple of states goes to `ops.leaves`."""
    for node in stage.calls(ops.enter, ops.leaves):
        for state in _states(node) if node.target is ops.enter else node.all_input_nodes:
            taken_out = state.target is operator.getitem and state.all_input_nodes[0].target is ops.leaves
            if state.op != "placeholder" and not taken_out:
                yield f"{node} takes {state}, which is no input of the graph"
            for user in [user for user in state.users if user is not node]:
                yield f"{user} uses the state {state}, which {node} takes"


def states_go_out_through_leave(stage: Stage) -> Iterator[str]:
    """Once `ops.leave` stands: only the graph's output uses its results for states, and no other state is cut off."""
    leaves = stage.calls(ops.leave)
    for detached in _detached_states(stage) if leaves else ():
        yield f"the state {_state_of(detached)} is returned as {detached}, not as a result of ops.leave"
    for leave in leaves:
        first_state = len(passed_on(leave)) - len(_states(leave))
        for part in leave.users:
            index: Any = part.args[1]
            for user in [user for user in part.users if index >= first_state and user.op != "output"]:
                yield f"{user} uses {part}, which is the state for the next call"


def results_of_a_segment_go_through_leave(stage: Stage) -> Iterator[str]:
    """Where a segment has an `ops.leave`, all that the segment passes on takes the predicted gradient along."""
    leaves = {record_of(leave).segment: leave for leave in stage.calls(ops.leave)}
    results: dict[int | None, list[Node]] = {}
    for boundary in stage.calls(*BOUNDARIES):
        results[record_of(boundary).segment] = list(passed_on(boundary))
    returned = [node for node in returned_nodes(stage.graph) if record_of(node).carries_gradient]
    results[record_of(stage.graph.output_node()).segment] = returned
    for segment, leave in leaves.items():
        for value in dict.fromkeys(results.get(segment, ())):
            if all(source.target is not ops.leave for source in value.all_input_nodes):
                yield f"{value} is passed on by segment {segment}, but not through {leave}"


def pieces_have_two_ends(stage: Stage) -> Iterator[str]:
    """Captured nodes stand between the two ends of a piece, and the begin has all that they use."""
    given: set[Node] | None = None
    for node in stage.graph.nodes:
        if node.target is ops.begin_piece:
            if given is not None:
                yield f"{node} begins a piece in another"
            given = set(node.all_input_nodes)
        elif node.target is ops.end_piece:
            if given is None:
                yield f"{node} ends no piece"
            given = None
        elif given is not None:
            if record_of(node).role != "model":
                yield f"{node} of role {record_of(node).role} stands in a piece"
            unknown = [one for one in node.all_input_nodes if one not in given and one.op != "get_attr"]
            yield from (f"{node} uses {one}, which the begin of its piece does not take" for one in unknown)
            given.add(node)
    if given is not None:
        yield "the last piece has no end"


# In this order: a rule may rely on those before it.
RULES: tuple[Rule, ...] = (
    every_node_has_a_record,
    captured_names_stay,
    segments_grow,
    memory_written_above_a_cut_crosses_it_once,
    states_are_cut_off_once,
    states_are_not_written_to_above,
    one_synthesizer_an_edge,
    no_gradient_path_goes_round_a_cut,
    decoupled_values_are_copied_before_a_write,
    dead_code_elimination_keeps_what_trains,
    time_cuts_have_two_ends,
    states_come_in_through_enter,
    states_go_out_through_leave,
    results_of_a_segment_go_through_leave,
    pieces_have_two_ends,
)


def check(stage: Stage) -> None:
    """Raise an AssertionError with all that breaks the first broken rule, and the pass that ran last."""
    for rule in RULES:
        broken = list(rule(stage))
        if broken:
            raise AssertionError(f"after {stage.done[-1]}: {rule.__name__}: {'; '.join(broken)}")


def _detached_states(stage: Stage) -> list[Node]:
    """The nodes that `CutStatesOff` added."""
    return [n for n in stage.graph.nodes if record_of(n).role == "detach" and record_of(n).cut is None]


def _state_of(detached: Node) -> Node:
    return detached.all_input_nodes[0]


def _states(end: Node) -> tuple[Node, ...]:
    """The states that an `ops.enter` or `ops.leave` takes."""
    args: Any = end.args
    return passed_on(end) if end.target is ops.enter else tuple(args[1])
