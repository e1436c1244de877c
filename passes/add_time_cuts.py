"""Put both ends of each cut in time into the graph: `ops.enter` and `ops.leave`."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from dni_fx import ops
from dni_fx.graph import NodeRecord, record_of, returned_nodes, set_record
from dni_fx.model import Path
from dni_fx.passes.boundary import BOUNDARIES, passed_on
from dni_fx.plans import StateTensor, TimeCutPlan, time_name

__all__ = ["AddTimeCuts"]


class AddTimeCuts(PassBase):
    """Needs: `CutStatesOff`, `DecoupleCuts`, a module `dni.<time_name>` for each cut in time.

    Leaves: for each cut in time, `ops.enter` on its states at the beginning of the first segment that uses them, and
    `ops.leave` at the end of the segment that makes the next states, on that segment's outputs and the next states
    (all of role "boundary"). All users of the values use the results instead, and the `detach` of each state is gone.
    """

    def __init__(self, states: Sequence[TimeCutPlan]) -> None:
        super().__init__()
        self.states = states

    def call(self, graph_module: GraphModule) -> PassResult:
        graph = graph_module.graph
        nodes = _unpack(graph, [tensor for state in self.states for tensor in state.tensors])
        returned = returned_nodes(graph)
        state_indices = {tensor.output for state in self.states for tensor in state.tensors}
        others = [i for i, n in enumerate(returned) if i not in state_indices and record_of(n).carries_gradient]
        for index, state in enumerate(self.states):
            name = f"dni.{time_name(index)}"
            _enter(graph, name, tuple(nodes[tensor] for tensor in state.tensors), state.enters[0])
            cut_off = [returned[tensor.output] for tensor in state.tensors]
            boundary = _boundary(graph, state.leaves)
            if boundary is None:
                _leave_at_the_end(graph, name, cut_off, others)
            else:
                _leave_at_a_cut(graph, name, cut_off, boundary)
        return PassResult(graph_module, True)


def _unpack(graph: Graph, tensors: Sequence[StateTensor]) -> dict[StateTensor, Node]:
    """The node of each tensor of a state: its placeholder, or a result of `ops.leaves` on a tuple or dict."""
    nodes: dict[StateTensor, Node] = {}
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for placeholder in placeholders:
        own = [tensor for tensor in tensors if tensor.input == placeholder.name]
        if not own or own[0].path == ():
            nodes |= dict.fromkeys(own, placeholder)
            continue
        with graph.inserting_before(placeholders[-1].next):
            leaves = graph.call_function(ops.leaves, (placeholder, tuple(tensor.path for tensor in own)))
            parts = _parts(graph, leaves, [placeholder] * len(own))
        _mark([leaves, *parts], 0)
        nodes |= zip(own, parts, strict=True)
        _use(placeholder, {tensor.path: part for tensor, part in zip(own, parts, strict=True)}, leaves)
    return nodes


def _use(value: Node, parts: Mapping[Path, Node], leaves: Node) -> None:
    """Replace a tuple or dict, and the elements taken out of it, by its tensors in all users but `leaves`."""
    for user in [user for user in value.users if user is not leaves]:
        index = user.args[1] if user.target is operator.getitem and user.args[0] is value else None
        inner = {path[1:]: part for path, part in parts.items() if path[0] == index}
        if inner:
            _use(user, inner, leaves) if () not in inner else user.replace_all_uses_with(inner[()])
            user.graph.erase_node(user)
        else:
            user.args, user.kwargs = map_arg((user.args, user.kwargs), lambda n: _built(parts) if n is value else n)


def _built(parts: Mapping[Path, Node]) -> Any:
    """Build the tuple or dict again that has the tensors at these paths."""
    if () in parts:
        return parts[()]
    keys = dict.fromkeys(path[0] for path in parts)
    built = {key: _built({path[1:]: part for path, part in parts.items() if path[0] == key}) for key in keys}
    return built if isinstance(next(iter(keys)), str) else tuple(built.values())


def _enter(graph: Graph, name: str, states: tuple[Node, ...], segment: int) -> None:
    nodes = list(graph.nodes)
    after = nodes[max(i for i, node in enumerate(nodes) if node.op == "placeholder") + 1 :]
    # Not before `ops.leaves` and the boundary below the segment, which the arguments come from.
    first = next(node for node in after if record_of(node).segment == segment and record_of(node).role == "model")
    with graph.inserting_before(first):
        cut = graph.get_attr(name)
        entered = graph.call_function(ops.enter, (states, cut))
        following = _parts(graph, entered, states)
    for state, part in zip(states, following, strict=True):
        state.replace_all_uses_with(part, delete_user_cb=lambda user: user is not entered)
    _mark([cut, entered, *following], segment)


def _boundary(graph: Graph, segment: int) -> Node | None:
    """The boundary above a segment; None for the last segment."""
    boundaries = [node for node in graph.nodes if node.target in BOUNDARIES]
    return boundaries[segment] if segment < len(boundaries) else None


def _leave_at_a_cut(graph: Graph, name: str, cut_off: Sequence[Node], boundary: Node) -> None:
    boundary.args = (_leave(graph, name, passed_on(boundary), cut_off, boundary), *boundary.args[1:])


def _leave_at_the_end(graph: Graph, name: str, cut_off: Sequence[Node], indices: Sequence[int]) -> None:
    """Put `ops.leave` before the graph's output, on the returned nodes at these indices."""
    output = graph.output_node()
    returned = returned_nodes(graph)
    outputs = tuple(dict.fromkeys(returned[i] for i in indices))
    carrying = dict(zip(outputs, _leave(graph, name, outputs, cut_off, output), strict=True))
    count = iter(range(len(returned)))
    output.args = map_arg(output.args, lambda node: carrying[node] if next(count) in indices else node)


def _leave(
    graph: Graph, name: str, outputs: tuple[Node, ...], cut_off: Sequence[Node], before: Node
) -> tuple[Node, ...]:
    """Call `ops.leave` on a segment's outputs and on the states under `cut_off`.

    Returns:
        The results for the outputs. Those for the states replace the nodes of `cut_off`.
    """
    states = tuple(node.all_input_nodes[0] for node in cut_off)
    with graph.inserting_before(before):
        cut = graph.get_attr(name)
        left = graph.call_function(ops.leave, (outputs, states, cut))
        parts = _parts(graph, left, (*outputs, *states))
    _mark([cut, left, *parts], record_of(before).segment)
    for output, part in zip(outputs, parts, strict=False):
        record_of(part).carries_gradient = record_of(output).carries_gradient
    for node, part in zip(cut_off, parts[len(outputs) :], strict=True):
        node.replace_all_uses_with(part)
        graph.erase_node(node)
    return tuple(parts[: len(outputs)])


def _parts(graph: Graph, whole: Node, values: Sequence[Node]) -> list[Node]:
    return [
        graph.create_node("call_function", operator.getitem, (whole, i), name=f"{value.name}_next")
        for i, value in enumerate(values)
    ]


def _mark(added: Sequence[Node], segment: int | None) -> None:
    for node in added:
        set_record(node, NodeRecord(role="boundary", segment=segment))
