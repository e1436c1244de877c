"""All optimizers that exist."""

import gc
from collections.abc import Iterable

import torch
from torch import nn

__all__ = ["held_by", "live_optimizers"]


def live_optimizers() -> list[torch.optim.Optimizer]:
    """Every optimizer that exists. The search takes a part of a second: call this once, not at every step."""
    return [found for found in gc.get_objects() if issubclass(type(found), torch.optim.Optimizer)]


def held_by(optimizers: Iterable[torch.optim.Optimizer]) -> set[nn.Parameter]:
    """The parameters that these optimizers train."""
    groups = [group for optimizer in optimizers for group in getattr(optimizer, "param_groups", ())]
    return {parameter for group in groups for parameter in group["params"]}
