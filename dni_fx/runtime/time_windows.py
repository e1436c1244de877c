"""Find the state of a recurrent model among the arguments and the outputs of a call."""

import itertools
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dni_fx.model import Inputs, Path, by_name, by_path, canonical, tensors_in
from dni_fx.plans import StateTensor
from dni_fx.runtime.module import DecoupledModule

__all__ = ["next_window", "state_in", "state_indices"]


def state_indices(tensors: Sequence[StateTensor], result: Any) -> list[int]:
    """The indices of the state's tensors in `tensors_in(result)`, where `result` is the result of a call."""
    leaves = by_path(result) if tensors else {}
    starts = [0, *itertools.accumulate(len(tensors_in(leaf)) for leaf in leaves.values())]
    by_leaf = dict(zip(leaves, starts, strict=False))
    return [by_leaf[tensor.result] for tensor in tensors]


def state_in(net: DecoupledModule, tensors: Sequence[StateTensor], inputs: Inputs) -> list[Any]:
    """The state's tensors among the arguments of a call; None for an absent tensor."""
    leaves = _by_placeholder(net, inputs)
    return [leaves.get((tensor.input, tensor.path)) for tensor in tensors]


def next_window(
    net: DecoupledModule, tensors: Sequence[StateTensor], inputs: Inputs, values: Sequence[Tensor]
) -> Inputs:
    """A copy of the arguments of a call in which `values` replace the state's tensors."""
    fresh = inputs.map(lambda t: t.detach().clone())  # so that no tensor is passed twice, and `id` tells them apart
    old_state = state_in(net, tensors, fresh)
    replacements = {id(old): new for old, new in zip(old_state, values, strict=True)}
    return fresh.map(lambda t: replacements.get(id(t), t))


def _by_placeholder(net: DecoupledModule, inputs: Inputs) -> dict[tuple[str, Path], Any]:
    """The tensors among the arguments of a call, by the placeholder's name and the path in the placeholder's value."""
    forward = net.forward if net.dni_captured.original is None else net.dni_captured.original.forward
    arguments = by_name(forward, *canonical(forward, inputs.args, inputs.kwargs))
    tensors: dict[tuple[str, Path], Any] = {}
    for name, places in net.dni_state_paths(arguments).items():
        tensors |= zip(places, tensors_in(arguments[name]), strict=False)
    return tensors
