"""Which arguments of a recurrent model are its state, which of its outputs it becomes, and in which segments."""

import operator
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from dni_fx.errors import DniFxError
from dni_fx.graph import returned_nodes
from dni_fx.model import Inputs, Path, by_name, by_path, canonical, tensors_in
from dni_fx.plans import Cut, StateTensor, TimeCutPlan
from dni_fx.runtime import DecoupledModule, GivenTensor, Place

__all__ = ["StateOption", "by_segments", "find_state", "states_alone"]

StateOption = bool | Mapping[str, int | str]

_NOTHING_ELSE = (
    "state: beside it the model gives nothing that carries gradient, and what is handed on is cut off, so a loss on it "
    "would train nothing: return it once more, as an output: y, state"
)


def find_state(model: nn.Module, net: DecoupledModule, inputs: Inputs, asked: StateOption) -> tuple[StateTensor, ...]:
    """The tensors of the state of a captured, annotated model, in the order in which it takes them.

    Args:
        inputs: Those it was captured with.
        asked: Outputs, by position or key, by the name of the argument that each is handed to in the next call; True:
            forward takes two arguments, the second being the state, and gives two results in the same order.

    Raises:
        DniFxError: If there is no such argument or output, or they are not alike.
    """
    both_ways = [name for name, m in model.named_modules() if isinstance(m, nn.RNNBase) and m.bidirectional]
    if both_ways:
        raise DniFxError(f"state: {both_ways[0] or 'the model'} is bidirectional, and has no state to hand on in time")
    stacked = {
        (module.num_layers, size)
        for module in model.modules()
        if isinstance(module, nn.RNNBase)
        for size in (module.hidden_size, module.proj_size)
    }
    given = by_name(model.forward, *canonical(model.forward, inputs.args, inputs.kwargs))  # in the graph's order
    results, outputs = net.dni_result(inputs)
    if asked is not True and not isinstance(asked, Mapping):
        raise DniFxError(f'state={asked!r}: True, or a dict such as {{"hidden": 1}}')
    if not asked:
        raise DniFxError("state={}: name an argument, and the output that it becomes")
    everything = [output.shape for output in outputs if output.shape is not None]
    for argument in asked if isinstance(asked, Mapping) else list(given)[1:]:
        if everything == [tuple(leaf.shape) for leaf in tensors_in(given.get(argument))]:
            raise DniFxError(_NOTHING_ELSE)  # forward(x, state) -> state, as nn.GRUCell has it
    pairs = dict(asked) if isinstance(asked, Mapping) else _found_by_itself(given, results)
    names = net.dni_state_places(given)
    tensors: list[StateTensor] = []
    for argument, key in pairs.items():
        key = _from_the_start(results, key)
        if argument not in given:
            raise DniFxError(f"state: the example has no argument {argument!r}; there are {', '.join(given)}")
        becomes = _becomes(argument, given[argument], key, _result(results, key), outputs)
        if net.dni_keeps_key_order and list(becomes) != list(by_path(given[argument])):
            raise DniFxError(
                f"state: output {key!r} has its keys in another order than the example's {argument!r}, and a graph by "
                "the front end export takes the example's alone: give the example in that of the output"
            )
        rows = _rows(given, pairs)
        for (name, inside), (path, value) in zip(names[argument], by_path(given[argument]).items(), strict=True):
            dtype = str(value.dtype).removeprefix("torch.")
            axis = _batch_axis(value, rows, argument, stacked)
            tensors.append(StateTensor(name, inside, (key, *path), becomes[path], tuple(value.shape), dtype, axis))
    if len({tensor.dtype for tensor in tensors}) > 1:
        raise DniFxError("state: its tensors are of several dtypes")
    taken = {tensor.output for tensor in tensors}
    if not any(output.carries_gradient for i, output in enumerate(outputs) if i not in taken):
        raise DniFxError(_NOTHING_ELSE)
    return tuple(tensors)


def _becomes(argument: str, value: Any, key: int | str, result: Any, outputs: Sequence[GivenTensor]) -> dict[Path, int]:
    """The place among the outputs of what each tensor of an argument becomes, in the order of the result."""
    before, after = by_path(value), by_path(result)
    tensors = list(before.values())
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise DniFxError(f"state: the example's {argument!r} holds no tensors alone: give zeros of its shape")
    if before.keys() != after.keys():
        holds = ["one tensor" if () in paths else f"tensors at {_text(paths)}" for paths in (before, after)]
        raise DniFxError(f"state: {argument!r} holds {holds[0]}, but output {key!r} {holds[1]}")
    shapes = [tuple(tensor.shape) for tensor in tensors]
    becomes = [outputs[after[path]].shape if isinstance(after[path], Place) else None for path in before]
    if shapes != becomes:
        raise DniFxError(f"state: {argument!r} has shapes {shapes}, but output {key!r} has {becomes}")
    if len({tensor.dtype for tensor in tensors}) > 1 or not tensors[0].dtype.is_floating_point:
        raise DniFxError(f"state: {argument!r} is not of one floating dtype: {[str(t.dtype) for t in tensors]}")
    return {path: int(place) for path, place in after.items()}


def _text(paths: Iterable[Path]) -> str:
    return ", ".join(".".join(map(str, path)) for path in paths)


def states_alone(net: DecoupledModule, tensors: Sequence[StateTensor]) -> set[str]:
    """Names of the nodes that the graph gives as its state, and as nothing else."""
    if not net.dni_runs_graph:
        return set()
    given = returned_nodes(net.graph)
    places = {tensor.output for tensor in tensors}
    others = {node.name for i, node in enumerate(given) if i not in places}
    return {given[i].name for i in places} - others


def by_segments(net: DecoupledModule, tensors: Sequence[StateTensor], cuts: Sequence[Cut]) -> tuple[TimeCutPlan, ...]:
    """The tensors that the same segments take and make are one state; without a graph, any may take them."""
    if not net.dni_runs_graph:
        return (TimeCutPlan(tuple(tensors), tuple(range(len(cuts) + 1)), len(cuts)),) if tensors else ()
    graph = net.graph
    segment, ends = 0, {cut.after for cut in cuts}
    segments: dict[fx.Node, int] = {}
    for node in graph.nodes:
        segments[node] = segment
        segment += node.name in ends
    given = returned_nodes(graph)
    by_name = {node.name: node for node in segments}
    found: dict[tuple[tuple[int, ...], int], list[StateTensor]] = {}
    for tensor in tensors:
        leaves = segments[given[tensor.output]]
        enters = {segments[user] for user in _users(by_name[tensor.input], tensor.path)}
        found.setdefault((tuple(sorted(enters)) or (leaves,), leaves), []).append(tensor)
    return tuple(TimeCutPlan(tuple(own), *where) for where, own in sorted(found.items()))


def _users(value: fx.Node, path: Path) -> list[fx.Node]:
    """What uses the tensor there in a value, wherever it is taken out."""
    found = []
    for user in value.users:
        taken = path and user.target is operator.getitem and user.args[0] is value
        if not taken:
            found.append(user)
        elif user.args[1] == path[0]:
            found += _users(user, path[1:])
    return found


def _found_by_itself(given: Mapping[str, Any], results: Any) -> dict[str, int | str]:
    if len(given) == 2 and isinstance(results, tuple | list) and len(results) == 2:
        return {list(given)[1]: 1}
    raise DniFxError(
        "state=True is for a forward (x, state) that returns (y, state), called so in the example; else name the "
        'argument and the output that it becomes, as in state={"hidden": 1}'
    )


def _from_the_start(results: Any, key: int | str) -> int | str:
    last = isinstance(key, int) and key < 0 and isinstance(results, tuple | list)
    return len(results) + key if last else key  # type: ignore[operator]


def _result(results: Any, key: int | str) -> Any:
    try:
        return results[key]
    except (KeyError, IndexError, TypeError):
        raise DniFxError(f"state: the model gives no output {key!r}") from None


def _rows(given: Mapping[str, Any], pairs: Mapping[str, Any]) -> tuple[int, ...]:
    """Sizes that may be the batch's, of what is no state: (N, F), (N, T, F), (T, N, F), or tokens (N, T), (T, N)."""
    for name, value in given.items():
        tensors = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor) and leaf.dim()]
        if name not in pairs and tensors:
            first = tensors[0]
            return tuple(first.shape[: 2 if first.dim() > 2 or not first.is_floating_point() else 1])
    raise DniFxError("state: the example has no other argument with rows")


def _batch_axis(state: Tensor, rows: tuple[int, ...], name: str, stacked: Set[tuple[int, int]]) -> int:
    """0 for (N, ...), 1 for (layers, N, F) as nn.LSTM has it.

    Args:
        stacked: Layers and features of the model's own nn.LSTM and the like.
    """
    if state.dim() == 3 and (state.shape[0], state.shape[2]) in stacked and state.shape[1] in rows:
        return 1
    axes = [axis for axis in range(1 if state.dim() < 3 else 2) if axis < state.dim() and state.shape[axis] in rows]
    if len(axes) == 1:
        return axes[0]
    how = "more than one axis" if axes else "no axis"
    raise DniFxError(
        f"state: {how} of {name!r}, of shape {list(state.shape)}, is as long as the batch may be, {list(rows)}: give "
        "an example whose batch size is like no other of its sizes, and the batch the first or second axis of all"
    )
