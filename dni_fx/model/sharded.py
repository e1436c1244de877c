"""`torch.distributed.fsdp.fully_shard` (FSDP2): which modules it has taken, and which of them run forward."""

import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

__all__ = [
    "gather_again",
    "is_shard",
    "is_sharded",
    "meshes_in",
    "own_part",
    "parameter_groups",
    "resharded",
    "running_states",
    "states_in",
]


def states_in(*modules: nn.Module) -> list[Any]:
    """The states that `fully_shard` has made of modules and their submodules."""
    # By name: the import takes long, and PyTorch may be built without torch.distributed.
    every = dict.fromkeys(m for module in modules for m in module.modules())
    sharded: list[Any] = [m for m in every if any(base.__name__ == "FSDPModule" for base in type(m).__mro__)]
    return list({id(state): state for m in sharded for state in [m._get_fsdp_state()]}.values())


def is_sharded(module: nn.Module) -> bool:
    """Whether `fully_shard` has split parameters of the module: called on it, in it, or on a module around it."""
    return any(getattr(m, "_is_fsdp_managed_module", False) for m in module.modules())


@contextmanager
def resharded(states: Sequence[Any]) -> Iterator[None]:
    """Begin and end with shards in place of whole parameters, also after a run that fails.

    Modules that run forward now have their whole parameters again at the end, gathered from the shards.

    Args:
        states: Of the modules, each as `fully_shard` has made it.
    """
    before = [(state, state._training_state, state._state_ctx.iter_forward_root) for state in states]
    _reshard(states)
    try:
        yield
    finally:
        _reshard(states)
        for state, training_state, root in before:
            if training_state.name == "FORWARD":
                for module in state._modules:
                    module.unshard()
                for holder in (state, *parameter_groups(state)):
                    holder._training_state = training_state
            state._state_ctx.iter_forward_root = root


def _reshard(states: Sequence[Any]) -> None:
    for state in states:
        for holder in (state, *parameter_groups(state)):  # a run that failed has left it at FORWARD
            holder._training_state = type(holder._training_state).IDLE
        state._state_ctx.iter_forward_root = None
        for module in state._modules:
            module.reshard()


def parameter_groups(state: Any) -> list[Any]:
    """The groups of parameters of a state; older versions of PyTorch know one at most."""
    groups = getattr(state, "_fsdp_param_groups", None)
    return [g for g in [state._fsdp_param_group] if g is not None] if groups is None else groups


def meshes_in(module: nn.Module) -> list[Any]:
    """The mesh of each group of parameters."""
    return [group.mesh_info.mesh for state in states_in(module) for group in parameter_groups(state)]


def is_shard(tensor: Tensor) -> bool:
    """Whether a parameter, or a gradient, is the part of one that this process has."""
    return type(tensor).__name__ == "DTensor"  # by name, as above


def own_part(tensor: Tensor) -> Tensor:
    """The values of a tensor that this process has, as a tensor of their own that shares their memory."""
    return tensor.detach().to_local() if is_shard(tensor) else tensor  # type: ignore[attr-defined]


def gather_again(states: Sequence[Any]) -> None:
    """Gather the whole parameters of modules that run forward from their shards; free those of all others."""
    with resharded(states):
        pass


def running_states(module: nn.Module) -> list[Any]:
    """The states that `fully_shard` has made of modules that run forward now, the root first.

    Of modules in `module`, and of those around it or around submodules of it.
    """
    composable = sys.modules.get("torch.distributed._composable_state")
    references = () if composable is None else composable._module_state_mapping.values()
    states: list[Any] = [r() if isinstance(r, weakref.ref) else r for r in list(references)]
    found = {id(s): s for s in states if hasattr(s, "_state_ctx") and s._training_state.name == "FORWARD"}
    if not found:
        return []
    own = set(module.modules())
    # A forward pass that failed has left the states of another model as if it still ran.
    around = [s for s in found.values() if any(not own.isdisjoint(m.modules()) for m in s._modules)]
    return sorted(around, key=lambda state: not state._is_root)
