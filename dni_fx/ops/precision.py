"""Computations in the precision of their operands, whatever torch.autocast is around them."""

import contextlib

import torch

__all__ = ["without_autocast"]


def without_autocast(device: str) -> contextlib.AbstractContextManager[None]:
    """A context in which autocast is off; a type of devices may have none."""
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()
