"""The parameters of optimizers."""

from collections.abc import Iterable

import torch
from torch import nn

__all__ = ["parameters_of"]


def parameters_of(optimizers: Iterable[torch.optim.Optimizer]) -> list[nn.Parameter]:
    """The parameters that these optimizers train, in order; none of an optimizer that is still being made."""
    groups = [group for optimizer in optimizers for group in getattr(optimizer, "param_groups", ())]
    return [parameter for group in groups for parameter in group["params"]]
