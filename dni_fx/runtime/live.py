"""All optimizers that exist, and their steps."""

import gc
import weakref
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from dni_fx.ops import parameters_of

__all__ = ["held_by", "live_optimizers", "post_each_step"]


def live_optimizers() -> list[torch.optim.Optimizer]:
    """Every optimizer that exists. The search takes a part of a second: call this once, not at every step."""
    return [found for found in gc.get_objects() if issubclass(type(found), torch.optim.Optimizer)]


def held_by(optimizers: Iterable[torch.optim.Optimizer]) -> set[nn.Parameter]:
    """The parameters that these optimizers train."""
    return set(parameters_of(optimizers))


class Observer(Protocol):
    """An object that looks at the steps of optimizers."""

    def post_step(self, optimizer: torch.optim.Optimizer) -> bool:
        """After a step of any optimizer; return whether later steps do not matter."""


def post_each_step(observer: Observer) -> None:
    """Call `post_step` after each step of any optimizer, until it returns True or the observer is freed."""
    _observers.add(observer)


_observers: "weakref.WeakSet[Observer]" = weakref.WeakSet()


def _post_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for observer in [] if torch.compiler.is_compiling() else list(_observers):
        if observer.post_step(optimizer):
            _observers.discard(observer)


# For the life of the process: a hook that is removed while an optimizer goes through all hooks makes the step fail.
register_optimizer_step_post_hook(_post_step)
