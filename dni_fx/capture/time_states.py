"""Find the state of a recurrent model: its arguments, the outputs that hold its next value, and its segments."""

import operator
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from dni_fx.errors import DniFxError
from dni_fx.graph import returned_nodes
from dni_fx.model import Inputs, Path, by_name, by_path, canonical, tensors_in
from dni_fx.plans import Cut, StateTensor, TimeCutPlan
from dni_fx.runtime import DecoupledModule, ReturnedIndex, ReturnedValue

__all__ = ["StateOption", "find_state", "plan_time_cuts"]

StateOption = bool | Mapping[str, int | str]

_NOTHING_TO_TRAIN = (
    "state: the model returns nothing else that carries gradient, and the state is cut off after each call, so a loss "
    "on the state would train nothing: return it once more, as an output: y, state"
)


def find_state(model: nn.Module, net: DecoupledModule, inputs: Inputs, option: StateOption) -> tuple[StateTensor, ...]:
    """The tensors of the state of a captured, annotated model, in the order of its arguments.

    Args:
        inputs: The example inputs of the capture.
        option: The argument `state` of `transform`: for each argument that is state, by name, the position or key of
            the output that holds its next value. True: forward takes `(x, state)` and returns `(y, state)`.

    Raises:
        DniFxError: If there is no such argument or output, or the two differ in structure or shape.
    """
    _check_direction(model)
    arguments = by_name(model.forward, *canonical(model.forward, inputs.args, inputs.kwargs))  # in the graph's order
    result, returned = net.dni_result(inputs)
    _check_option(option, arguments, returned)
    outputs = dict(option) if isinstance(option, Mapping) else _default_outputs(arguments, result)
    placeholders = net.dni_state_paths(arguments)
    layers = _recurrent_layers(model)
    tensors: list[StateTensor] = []
    for argument, key in outputs.items():
        key = _from_front(key, result)
        if argument not in arguments:
            raise DniFxError(f"state: the example has no argument {argument!r}; there are {', '.join(arguments)}")
        leaves = by_path(arguments[argument])
        next_indices = _next_indices(argument, leaves, key, _output(result, key), returned)
        if net.dni_keeps_key_order and list(next_indices) != list(leaves):
            raise DniFxError(
                f"state: output {key!r} has its keys in another order than the example's {argument!r}, and a graph by "
                "the front end export takes the order of the example alone: give the example in the order of the output"
            )
        sizes = _possible_batch_sizes(arguments, outputs.keys())
        for (placeholder, inside), (path, leaf) in zip(placeholders[argument], leaves.items(), strict=True):
            dtype = str(leaf.dtype).removeprefix("torch.")
            axis = _batch_axis(leaf, sizes, argument, layers)
            shape, output = tuple(leaf.shape), next_indices[path]
            tensors.append(StateTensor(placeholder, inside, (key, *path), output, shape, dtype, axis))
    if len({tensor.dtype for tensor in tensors}) > 1:
        raise DniFxError("state: its tensors are of several dtypes")
    _check_loss(tensors, returned)
    return tuple(tensors)


def _check_direction(model: nn.Module) -> None:
    bidirectional = [name for name, m in model.named_modules() if isinstance(m, nn.RNNBase) and m.bidirectional]
    if bidirectional:
        raise DniFxError(
            f"state: {bidirectional[0] or 'the model'} is bidirectional, so it has no state that "
            "goes from one call to the next"
        )


def _check_option(option: StateOption, arguments: Mapping[str, Any], returned: Sequence[ReturnedValue]) -> None:
    if option is not True and not isinstance(option, Mapping):
        raise DniFxError(f'state={option!r}: True, or a dict such as {{"hidden": 1}}')
    if not option:
        raise DniFxError("state={}: name an argument, and the output that it becomes")
    shapes = [value.shape for value in returned if value.shape is not None]
    for argument in option if isinstance(option, Mapping) else list(arguments)[1:]:
        if shapes == [tuple(leaf.shape) for leaf in tensors_in(arguments.get(argument))]:
            raise DniFxError(_NOTHING_TO_TRAIN)  # forward(x, state) -> state, as in nn.GRUCell


def _check_loss(tensors: Sequence[StateTensor], returned: Sequence[ReturnedValue]) -> None:
    """Raise a DniFxError if no output besides the state can carry a loss."""
    state = {tensor.output for tensor in tensors}
    if not any(value.carries_gradient for index, value in enumerate(returned) if index not in state):
        raise DniFxError(_NOTHING_TO_TRAIN)


def _recurrent_layers(model: nn.Module) -> set[tuple[int, int]]:
    """Number of layers and features of each state of the model's own nn.LSTM, nn.GRU and nn.RNN."""
    return {
        (module.num_layers, features)
        for module in model.modules()
        if isinstance(module, nn.RNNBase)
        for features in (module.hidden_size, module.proj_size)
    }


def _next_indices(
    argument: str, leaves: Mapping[Path, Any], key: int | str, output: Any, returned: Sequence[ReturnedValue]
) -> dict[Path, int]:
    """For each tensor of an argument, by path: the index of its next value among the returned tensors.

    The paths are in the order of the output.
    """
    next_leaves = by_path(output)
    tensors = list(leaves.values())
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise DniFxError(f"state: the example's {argument!r} does not hold tensors alone: give zeros of its shape")
    if leaves.keys() != next_leaves.keys():
        holds = ["one tensor" if () in paths else f"tensors at {_text(paths)}" for paths in (leaves, next_leaves)]
        raise DniFxError(f"state: {argument!r} holds {holds[0]}, but output {key!r} {holds[1]}")
    shapes = [tuple(tensor.shape) for tensor in tensors]
    next_shapes = [returned[p].shape if isinstance(p := next_leaves[path], ReturnedIndex) else None for path in leaves]
    if shapes != next_shapes:
        raise DniFxError(f"state: {argument!r} has shapes {shapes}, but output {key!r} has {next_shapes}")
    if len({tensor.dtype for tensor in tensors}) > 1 or not tensors[0].dtype.is_floating_point:
        raise DniFxError(f"state: {argument!r} is not of one floating dtype: {[str(t.dtype) for t in tensors]}")
    return {path: int(index) for path, index in next_leaves.items()}


def _text(paths: Iterable[Path]) -> str:
    return ", ".join(".".join(map(str, path)) for path in paths)


def plan_time_cuts(
    net: DecoupledModule, tensors: Sequence[StateTensor], cuts: Sequence[Cut]
) -> tuple[TimeCutPlan, ...]:
    """Group the state's tensors into cuts in time: one for tensors that enter and leave the same segments.

    A net that does not run its graph gets one cut in time, whose state may enter any segment.
    """
    if not net.dni_runs_graph:
        return (TimeCutPlan(tuple(tensors), tuple(range(len(cuts) + 1)), len(cuts)),) if tensors else ()
    graph = net.graph
    segment, ends = 0, {cut.after for cut in cuts}
    segments: dict[fx.Node, int] = {}
    for node in graph.nodes:
        segments[node] = segment
        segment += node.name in ends
    returned = returned_nodes(graph)
    by_name = {node.name: node for node in segments}
    groups: dict[tuple[tuple[int, ...], int], list[StateTensor]] = {}
    for tensor in tensors:
        leaves = segments[returned[tensor.output]]
        enters = sorted({segments[user] for user in _users(by_name[tensor.input], tensor.path)}) or [leaves]
        if leaves < enters[0] and not _is_input(returned[tensor.output]):
            raise DniFxError(
                f"state {tensor.input!r} gets its next value in segment {leaves}, below segment {enters[0]}, the first "
                "that uses the state: cut elsewhere"
            )
        leaves = max(leaves, enters[0])  # an input that is returned unchanged is in segment 0
        groups.setdefault((tuple(enters), leaves), []).append(tensor)
    return tuple(TimeCutPlan(tuple(group), *key) for key, group in sorted(groups.items()))


def _is_input(node: fx.Node) -> bool:
    """Whether a node is an input of the graph, or is taken out of one."""
    while node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node.op == "placeholder"


def _users(value: fx.Node, path: Path) -> list[fx.Node]:
    """The nodes that use the tensor at `path` in a nested value, or the whole value."""
    found = []
    for user in value.users:
        takes_item = path and user.target is operator.getitem and user.args[0] is value
        if not takes_item:
            found.append(user)
        elif user.args[1] == path[0]:
            found += _users(user, path[1:])
    return found


def _default_outputs(arguments: Mapping[str, Any], result: Any) -> dict[str, int | str]:
    """The meaning of state=True: the second argument becomes the second output."""
    if len(arguments) == 2 and isinstance(result, tuple | list) and len(result) == 2:
        return {list(arguments)[1]: 1}
    raise DniFxError(
        "state=True is for a forward (x, state) that returns (y, state), and for an example that holds both, as in "
        f"example_inputs = (x, state); this example has {', '.join(arguments) or 'no arguments'}; else name the "
        'argument and the output that it becomes, as in state={"hidden": 1}'
    )


def _from_front(key: int | str, result: Any) -> int | str:
    """The index from the front, for a negative index into a tuple or list."""
    if isinstance(key, int) and key < 0 and isinstance(result, tuple | list):
        return len(result) + key
    return key


def _output(result: Any, key: int | str) -> Any:
    try:
        return result[key]
    except (KeyError, IndexError, TypeError):
        raise DniFxError(f"state: the model returns no output {key!r}") from None


def _possible_batch_sizes(arguments: Mapping[str, Any], state: Set[str]) -> tuple[int, ...]:
    """Sizes that may be the batch size, from the first tensor among the arguments that are not state.

    Its shape may be (N, F), (N, T, F) or (T, N, F), or, for tokens, (N, T) or (T, N).
    """
    for name, value in arguments.items():
        tensors = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor) and leaf.dim()]
        if name not in state and tensors:
            first = tensors[0]
            return tuple(first.shape[: 2 if first.dim() > 2 or not first.is_floating_point() else 1])
    raise DniFxError("state: the example has no other argument with rows")


def _batch_axis(state: Tensor, sizes: tuple[int, ...], argument: str, layers: Set[tuple[int, int]]) -> int:
    """The axis of the batch: 0 for (N, ...), 1 for (layers, N, F) as in nn.LSTM.

    Args:
        sizes: The possible batch sizes.
        layers: The result of `_recurrent_layers`.
    """
    if state.dim() == 3 and (state.shape[0], state.shape[2]) in layers and state.shape[1] in sizes:
        return 1
    axes = [axis for axis in range(1 if state.dim() < 3 else 2) if axis < state.dim() and state.shape[axis] in sizes]
    if len(axes) == 1:
        return axes[0]
    how = "more than one axis" if axes else "no axis"
    raise DniFxError(
        f"state: {how} of {argument!r}, of shape {list(state.shape)}, is as long as the batch may be, {list(sizes)}: "
        "give an example whose batch size is like no other of its sizes, and make the batch the first or second axis "
        "of every tensor"
    )
