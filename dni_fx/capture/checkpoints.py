"""Activation checkpointing in the person's model, which no graph can hold."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from torch import nn
from torch.utils import checkpoint

__all__ = ["on_checkpoint", "warn_of_lost_checkpoints"]


@contextlib.contextmanager
def on_checkpoint(tell: Callable[[], None]) -> Iterator[None]:
    """Call `tell` wherever a part of the model is to be computed again in the backward pass."""

    def told(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            tell()
            return original(*args, **kwargs)

        return call

    without_reentry = "_checkpoint_without_reentrant_generator"
    with (
        mock.patch.object(checkpoint.CheckpointFunction, "apply", told(checkpoint.CheckpointFunction.apply)),
        mock.patch.object(checkpoint, without_reentry, told(getattr(checkpoint, without_reentry))),
    ):
        yield


def warn_of_lost_checkpoints(net: nn.Module) -> None:
    """Say so if a captured graph keeps what the model would compute again."""
    if not net.__dict__.get("dni_lost_checkpoints"):
        return
    warnings.warn(
        f"{type(net).__name__}: activation checkpointing is not in the captured graph, which keeps what would be "
        'computed again: cut there instead, let the block\'s own forward call checkpoint, or use frontend="modules"',
        stacklevel=5,
    )
