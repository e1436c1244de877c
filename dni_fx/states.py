"""Which arguments of a recurrent model are its state, and which of its outputs it becomes."""

import itertools
from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from dni_fx.calling import Calling, by_name
from dni_fx.errors import DniFxError
from dni_fx.inputs import Inputs
from dni_fx.module import DecoupledModule
from dni_fx.planning import State, StateTensor

__all__ = ["StateOption", "find_state", "parse_state"]

StateOption = bool | Mapping[str, int | str]


def find_state(model: nn.Module, net: DecoupledModule, inputs: Inputs, asked: StateOption) -> State:
    """The state of a captured, annotated model.

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
    given = by_name(model.forward, inputs.args, inputs.kwargs)
    results = _results(net)
    pairs = dict(asked) if isinstance(asked, Mapping) else _found_by_itself(given, results)
    names = _placeholders(net, given)
    nodes: list[fx.Node] = []
    fx.node.map_arg(net.graph.output_node().args[0], nodes.append)
    taken: list[str] = []
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
        taken += names[argument]
        rows = _rows(given, pairs)
        for value, position in zip(values, positions, strict=True):
            dtype = str(value.dtype).removeprefix("torch.")
            tensors.append(StateTensor(position, tuple(value.shape), dtype, _batch_axis(value, rows, argument)))
    return State(tuple(taken), tuple(tensors))


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


def _results(net: DecoupledModule) -> Any:
    """What the model gives, with the place of each node among all in its stead."""
    count = itertools.count()
    numbered: Any = fx.node.map_arg(net.graph.output_node().args[0], lambda node: next(count))
    calling: Calling | None = net.__dict__.get("dni_calling")
    return numbered if calling is None else calling.unflatten(numbered)


def _result(results: Any, key: int | str) -> Any:
    try:
        return results[key]
    except (KeyError, IndexError, TypeError):
        raise DniFxError(f"state: the model gives no output {key!r}") from None


def _placeholders(net: DecoupledModule, given: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names of the graph's placeholders for each argument."""
    nodes = [node for node in net.graph.nodes if node.op == "placeholder"]
    if "dni_calling" not in net.__dict__:
        by_target = {str(node.target): node.name for node in nodes}
        return {name: [by_target[name]] for name in given if name in by_target}
    flat = iter(nodes)
    return {
        name: [next(flat).name for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
        for name, value in given.items()
    }


def _rows(given: Mapping[str, Any], pairs: Mapping[str, Any]) -> tuple[int, ...]:
    """Sizes of the first two axes of what is no state: one of them is the batch size."""
    for name, value in given.items():
        tensors = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor) and leaf.dim()]
        if name not in pairs and tensors:
            return tuple(tensors[0].shape[:2])
    raise DniFxError("state: the example has no other argument with rows")


def _batch_axis(state: Tensor, rows: tuple[int, ...], name: str) -> int:
    """0 for (N, ...), 1 for (layers, N, ...) as nn.LSTM has it."""
    for size in rows:  # (N, T, ...) is more usual than (T, N, ...)
        axes = [axis for axis in range(min(state.dim(), 2)) if state.shape[axis] == size]
        if len(axes) == 1:
            return axes[0]
        if axes:
            raise DniFxError(
                f"state: two axes of {name!r}, of shape {list(state.shape)}, are as long as the batch: give an example "
                "with another batch size"
            )
    raise DniFxError(f"state: no axis of {name!r}, of shape {list(state.shape)}, is as long as the batch")
