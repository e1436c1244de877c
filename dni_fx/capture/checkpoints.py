"""Find calls of activation checkpointing in the model, which a graph does not hold."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from torch.utils import checkpoint

from dni_fx.runtime import DecoupledModule

__all__ = ["on_checkpoint", "warn_of_lost_checkpoints"]


@contextlib.contextmanager
def on_checkpoint(callback: Callable[[], None]) -> Iterator[None]:
    """Call `callback` before each call of activation checkpointing."""

    def with_callback(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            callback()
            return original(*args, **kwargs)

        return call

    without_reentry = "_checkpoint_without_reentrant_generator"
    with (
        mock.patch.object(checkpoint.CheckpointFunction, "apply", with_callback(checkpoint.CheckpointFunction.apply)),
        mock.patch.object(checkpoint, without_reentry, with_callback(getattr(checkpoint, without_reentry))),
    ):
        yield


def warn_of_lost_checkpoints(net: DecoupledModule) -> None:
    """Warn if the model checkpoints activations, and the captured graph saves them."""
    if not net.dni_captured.lost_checkpoints:
        return
    warnings.warn(
        f"{type(net).__name__}: activation checkpointing is not in the captured graph, which saves the activations "
        'of those blocks: cut there instead, let the block\'s own forward call checkpoint, or use frontend="modules"',
        stacklevel=5,
    )
