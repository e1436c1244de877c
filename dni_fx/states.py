"""Which arguments of a recurrent model are its state, which of its outputs it becomes, and in which segments."""

import itertools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from dni_fx import meta
from dni_fx.calling import Calling, by_name, canonical
from dni_fx.errors import DniFxError
from dni_fx.inputs import Inputs
from dni_fx.module import DecoupledModule
from dni_fx.planning import Cut, State, StateTensor

__all__ = ["StateOption", "by_segments", "find_state", "handed_on", "next_window", "parse_state", "states_alone"]

Path = tuple[Any, ...]
StateOption = bool | Mapping[str, int | str]


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
    layers_first = any(isinstance(module, nn.RNNBase) for module in model.modules())
    given = by_name(model.forward, *canonical(model.forward, inputs.args, inputs.kwargs))  # in the graph's order
    results = _results(net)
    if not asked:
        raise DniFxError("state={}: name an argument, and the output that it becomes")
    pairs = dict(asked) if isinstance(asked, Mapping) else _found_by_itself(given, results)
    names = _placeholders(net, given)
    nodes: list[fx.Node] = []
    fx.node.map_arg(net.graph.output_node().args[0], nodes.append)
    tensors: list[StateTensor] = []
    for argument, key in pairs.items():
        if argument not in given:
            raise DniFxError(f"state: the example has no argument {argument!r}; there are {', '.join(given)}")
        values = pytree.tree_leaves(given[argument])
        positions = pytree.tree_leaves(_result(results, key))
        if not values or not all(isinstance(value, Tensor) for value in values):
            raise DniFxError(f"state: the example's {argument!r} holds no tensors alone: give zeros of its shape")
        shapes = [tuple(value.shape) for value in values]
        becomes = [tuple(nodes[i].meta["val"].shape) for i in positions]
        if shapes != becomes:
            raise DniFxError(f"state: {argument!r} has shapes {shapes}, but output {key!r} has {becomes}")
        if len({value.dtype for value in values}) > 1 or not values[0].dtype.is_floating_point:
            raise DniFxError(f"state: {argument!r} is not of one floating dtype: {[str(v.dtype) for v in values]}")
        rows = _rows(given, pairs)
        for (name, path), value, position in zip(names[argument], values, positions, strict=True):
            dtype = str(value.dtype).removeprefix("torch.")
            axis = _batch_axis(value, rows, argument, layers_first=layers_first)
            tensors.append(StateTensor(name, path, int(position), tuple(value.shape), dtype, axis))
    if len({tensor.dtype for tensor in tensors}) > 1:
        raise DniFxError("state: its tensors are of several dtypes")
    taken = {tensor.output for tensor in tensors}
    if not any(meta.of(node).carries_gradient for i, node in enumerate(nodes) if i not in taken):
        raise DniFxError(
            "state: beside it the model gives nothing that carries gradient, and what is handed on is cut off, so a "
            "loss on it would train nothing: return it once more, as an output"
        )
    return tuple(tensors)


def states_alone(graph: fx.Graph, tensors: Sequence[StateTensor]) -> set[str]:
    """Names of the nodes that the graph gives as its state, and as nothing else."""
    given: list[fx.Node] = []
    fx.node.map_arg(graph.output_node().args[0], given.append)
    places = {tensor.output for tensor in tensors}
    others = {node.name for i, node in enumerate(given) if i not in places}
    return {given[i].name for i in places} - others


def by_segments(graph: fx.Graph, tensors: Sequence[StateTensor], cuts: Sequence[Cut]) -> tuple[State, ...]:
    """The tensors that the same segments take and make are one state."""
    segment, ends = 0, {cut.after for cut in cuts}
    segments: dict[fx.Node, int] = {}
    for node in graph.nodes:
        segments[node] = segment
        segment += node.name in ends
    given: list[fx.Node] = []
    fx.node.map_arg(graph.output_node().args[0], given.append)
    by_name = {node.name: node for node in segments}
    found: dict[tuple[tuple[int, ...], int], list[StateTensor]] = {}
    for tensor in tensors:
        leaves = segments[given[tensor.output]]
        enters = {segments[user] for user in _users(by_name[tensor.input], tensor.path)}
        found.setdefault((tuple(sorted(enters)) or (leaves,), leaves), []).append(tensor)
    return tuple(State(tuple(own), *where) for where, own in sorted(found.items()))


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


def handed_on(net: DecoupledModule, tensors: Sequence[StateTensor], result: Any) -> list[Tensor]:
    """These of the state in what a call of `net` gave."""
    places = pytree.tree_leaves(_results(net))
    given = [leaf for place, leaf in zip(places, pytree.tree_leaves(result), strict=True) if isinstance(place, _Place)]
    return [given[tensor.output] for tensor in tensors]


def next_window(
    net: DecoupledModule, tensors: Sequence[StateTensor], inputs: Inputs, values: Sequence[Tensor]
) -> Inputs:
    """The same call with these values for its state."""
    fresh = inputs.map(lambda t: t.detach().clone())  # in which no tensor is at two places
    forward = getattr(net.__dict__.get("dni_original"), "forward", net.forward)
    given = by_name(forward, *canonical(forward, fresh.args, fresh.kwargs))
    before: dict[tuple[str, Path], Tensor] = {}
    for name, places in _placeholders(net, given).items():
        before |= zip(places, pytree.tree_leaves(given[name]), strict=False)
    following = {id(before[t.input, t.path]): value for t, value in zip(tensors, values, strict=True)}
    return fresh.map(lambda t: following.get(id(t), t))


def parse_state(text: str | None) -> StateOption | None:
    """What the command line means: `auto`, or `NAME=OUTPUT`, several with commas.

    Raises:
        DniFxError: If it does not read so.
    """
    if text is None or text == "auto":
        return None if text is None else True
    pairs = [part.split("=") for part in text.split(",")]
    if not all(len(pair) == 2 and all(pair) for pair in pairs):
        raise DniFxError(f"--state {text!r}: auto, or NAME=OUTPUT, as in hidden=1 or hidden=last,cell=2")
    return {name.strip(): int(key) if key.strip().isdecimal() else key.strip() for name, key in pairs}


def _found_by_itself(given: Mapping[str, Any], results: Any) -> dict[str, int | str]:
    if len(given) == 2 and isinstance(results, tuple | list) and len(results) == 2:
        return {list(given)[1]: 1}
    raise DniFxError(
        "state=True is for a forward (x, state) that returns (y, state), called so in the example; else name the "
        'argument and the output that it becomes, as in state={"hidden": 1}'
    )


class _Place(int):
    """Of a node among all that a graph gives; what else it gives may be a number, too."""


def _results(net: DecoupledModule) -> Any:
    """What the model gives, with the place of each node among all in its stead."""
    count = itertools.count()
    numbered: Any = fx.node.map_arg(net.graph.output_node().args[0], lambda node: _Place(next(count)))
    calling: Calling | None = net.__dict__.get("dni_calling")
    return numbered if calling is None else calling.unflatten(numbered)


def _result(results: Any, key: int | str) -> Any:
    try:
        return results[key]
    except (KeyError, IndexError, TypeError):
        raise DniFxError(f"state: the model gives no output {key!r}") from None


def _placeholders(net: DecoupledModule, given: Mapping[str, Any]) -> dict[str, list[tuple[str, Path]]]:
    """The graph's placeholder for each tensor of each argument, and where in it."""
    nodes = [node for node in net.graph.nodes if node.op == "placeholder"]
    if "dni_calling" not in net.__dict__:
        by_target = {str(node.target): node.name for node in nodes}
        return {n: [(by_target[n], path) for path in _paths(value)] for n, value in given.items() if n in by_target}
    flat = iter(nodes)
    return {
        name: [(next(flat).name, ()) for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
        for name, value in given.items()
    }


def _paths(value: Any) -> list[Path]:
    keyed, _ = pytree.tree_flatten_with_path(value)
    return [tuple(getattr(key, "idx", getattr(key, "key", None)) for key in keys) for keys, _ in keyed]


def _rows(given: Mapping[str, Any], pairs: Mapping[str, Any]) -> tuple[int, ...]:
    """Sizes of the first axes of what is no state, (N, F), (N, T, F) or (T, N, F): one of them is the batch size."""
    for name, value in given.items():
        tensors = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor) and leaf.dim()]
        if name not in pairs and tensors:
            return tuple(tensors[0].shape[: 2 if tensors[0].dim() > 2 else 1])
    raise DniFxError("state: the example has no other argument with rows")


def _batch_axis(state: Tensor, rows: tuple[int, ...], name: str, *, layers_first: bool) -> int:
    """0 for (N, ...), 1 for (layers, N, ...) as nn.LSTM has it.

    Args:
        layers_first: Where both would do, it is the latter.
    """
    axes = [axis for axis in range(1 if state.dim() < 3 else 2) if axis < state.dim() and state.shape[axis] in rows]
    if len(axes) == 1 or (axes and layers_first):
        return axes[-1]
    how = "more than one axis" if axes else "no axis"
    raise DniFxError(
        f"state: {how} of {name!r}, of shape {list(state.shape)}, is as long as the batch may be, {list(rows)}: give "
        "an example with a batch size like no other of its sizes"
    )
