"""Where the state of a recurrent model is in a call: in what it is given, and in what it gives."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from dni_fx.model import Inputs, Path, by_name, by_path, canonical, tensors_in
from dni_fx.plans import StateTensor
from dni_fx.runtime.hooked import HookedModule
from dni_fx.runtime.module import DecoupledModule

__all__ = ["next_window", "placeholders", "places", "state_in"]


def places(tensors: Sequence[StateTensor], result: Any) -> list[int]:
    """Which of the tensors that a call gave, by `tensors_in`, these of the state are."""
    leaves = by_path(result) if tensors else {}
    before = [0, *itertools.accumulate(len(tensors_in(leaf)) for leaf in leaves.values())]
    by_leaf = dict(zip(leaves, before, strict=False))
    return [by_leaf[tensor.result] for tensor in tensors]


def state_in(net: DecoupledModule, tensors: Sequence[StateTensor], inputs: Inputs) -> list[Any]:
    """These of the state in what a call is given."""
    leaves = _by_placeholder(net, inputs)
    return [leaves.get((tensor.input, tensor.path)) for tensor in tensors]


def next_window(
    net: DecoupledModule, tensors: Sequence[StateTensor], inputs: Inputs, values: Sequence[Tensor]
) -> Inputs:
    """The same call with these values for its state."""
    fresh = inputs.map(lambda t: t.detach().clone())  # in which no tensor is at two places
    before = state_in(net, tensors, fresh)
    following = {id(old): new for old, new in zip(before, values, strict=True)}
    return fresh.map(lambda t: following.get(id(t), t))


def _by_placeholder(net: DecoupledModule, inputs: Inputs) -> dict[tuple[str, Path], Any]:
    """The tensors of a call by what takes them, and where in it."""
    forward = getattr(net.__dict__.get("dni_original"), "forward", net.forward)
    given = by_name(forward, *canonical(forward, inputs.args, inputs.kwargs))
    found: dict[tuple[str, Path], Any] = {}
    for name, places in placeholders(net, given).items():
        found |= zip(places, tensors_in(given[name]), strict=False)
    return found


def placeholders(net: DecoupledModule, given: Mapping[str, Any]) -> dict[str, list[tuple[str, Path]]]:
    """For each tensor of each argument the placeholder that takes it, or without a graph the argument; and where."""
    if isinstance(net, HookedModule):
        return {name: [(name, path) for path in by_path(value)] for name, value in given.items()}
    nodes = [node for node in net.graph.nodes if node.op == "placeholder"]
    if "dni_calling" not in net.__dict__:
        by_target = {str(node.target): node.name for node in nodes}
        return {n: [(by_target[n], path) for path in by_path(value)] for n, value in given.items() if n in by_target}
    flat = iter(nodes)
    return {
        name: [(next(flat).name, ()) for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
        for name, value in given.items()
    }
