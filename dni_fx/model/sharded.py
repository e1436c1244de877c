"""`torch.distributed.fsdp.fully_shard` (FSDP2): which modules it has taken, and which of them run forward."""

import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["is_sharded", "parameter_groups", "resharded", "running_states", "sharded_modules"]


def sharded_modules(module: nn.Module) -> Iterator[Any]:
    """The module and its submodules on which `fully_shard` was called."""
    # by name: the import takes long, and PyTorch may be built without torch.distributed
    return (m for m in module.modules() if any(base.__name__ == "FSDPModule" for base in type(m).__mro__))


def is_sharded(module: nn.Module) -> bool:
    """Whether `fully_shard` has split parameters of the module: called on it, in it, or on a module around it."""
    return any(getattr(m, "_is_fsdp_managed_module", False) for m in module.modules())


@contextmanager
def resharded(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Begin and end with the shards of sharded modules in place of whole parameters, also after a run that fails.

    Modules that run forward now have their whole parameters again at the end.
    """
    sharded = [s for module in modules for s in sharded_modules(module)]
    running = [(s, s._get_fsdp_state()._training_state) for s in sharded if _runs(s._get_fsdp_state())]
    root = running[0][0]._get_fsdp_state()._state_ctx.iter_forward_root if running else None
    _reshard(sharded)
    try:
        yield
    finally:
        _reshard(sharded)
        for module, training_state in running:
            module.unshard()
            state = module._get_fsdp_state()
            state._training_state, state._state_ctx.iter_forward_root = training_state, root


def _reshard(sharded: Sequence[Any]) -> None:
    for module in sharded:
        state = module._get_fsdp_state()
        idle = type(state._training_state).IDLE
        for holder in (state, *parameter_groups(state)):  # a run that failed has left it at FORWARD
            holder._training_state = idle
        state._state_ctx.iter_forward_root = None
        module.reshard()


def parameter_groups(state: Any) -> list[Any]:
    """The groups of parameters of a state; older versions of PyTorch know one at most."""
    groups = getattr(state, "_fsdp_param_groups", None)
    return [g for g in [state._fsdp_param_group] if g is not None] if groups is None else groups


def _runs(state: Any) -> bool:
    return bool(state._training_state.name == "FORWARD")


def running_states(module: nn.Module) -> list[Any]:
    """The states that `fully_shard` has made of modules that run forward now, outermost first.

    Of modules in `module`, and of those around it or around submodules of it.
    """
    composable = sys.modules.get("torch.distributed._composable_state")
    references = () if composable is None else composable._module_state_mapping.values()
    states: list[Any] = [r() if isinstance(r, weakref.ref) else r for r in list(references)]
    found = {id(s): s for s in states if hasattr(s, "_state_ctx") and _runs(s)}
    if not found:
        return []
    own = set(module.modules())
    # A forward pass that failed has left the states of another model as if it still ran.
    around = [s for s in found.values() if any(not own.isdisjoint(m.modules()) for m in s._modules)]
    return sorted(around, key=lambda state: not state._is_root)
