"""Where the state of a recurrent model is in a call: in what it is given, and in what it gives."""

import itertools
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dni_fx.model import Inputs, Path, by_name, by_path, canonical, tensors_in
from dni_fx.plans import StateTensor
from dni_fx.runtime.module import DecoupledModule

__all__ = ["next_window", "places", "state_in"]


def places(tensors: Sequence[StateTensor], result: Any) -> list[int]:
    """The positions of the state's tensors among all that a call returned, in the order of `tensors_in`."""
    leaves = by_path(result) if tensors else {}
    before = [0, *itertools.accumulate(len(tensors_in(leaf)) for leaf in leaves.values())]
    by_leaf = dict(zip(leaves, before, strict=False))
    return [by_leaf[tensor.result] for tensor in tensors]


def state_in(net: DecoupledModule, tensors: Sequence[StateTensor], inputs: Inputs) -> list[Any]:
    """The state's tensors among the arguments of a call; None for one that is absent."""
    leaves = _by_placeholder(net, inputs)
    return [leaves.get((tensor.input, tensor.path)) for tensor in tensors]


def next_window(
    net: DecoupledModule, tensors: Sequence[StateTensor], inputs: Inputs, values: Sequence[Tensor]
) -> Inputs:
    """The same call with these values for its state."""
    fresh = inputs.map(lambda t: t.detach().clone())  # so that no tensor is at two places
    before = state_in(net, tensors, fresh)
    following = {id(old): new for old, new in zip(before, values, strict=True)}
    return fresh.map(lambda t: following.get(id(t), t))


def _by_placeholder(net: DecoupledModule, inputs: Inputs) -> dict[tuple[str, Path], Any]:
    """The tensors of a call, by the name of the placeholder and the path in its value."""
    forward = net.forward if net.dni_captured.original is None else net.dni_captured.original.forward
    given = by_name(forward, *canonical(forward, inputs.args, inputs.kwargs))
    found: dict[tuple[str, Path], Any] = {}
    for name, places in net.dni_state_places(given).items():
        found |= zip(places, tensors_in(given[name]), strict=False)
    return found
