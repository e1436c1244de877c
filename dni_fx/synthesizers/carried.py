"""The state that a synthesizer carries from one call to the next."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["Carried"]


class Batch(NamedTuple):
    """The batch that a state belongs to."""

    rows: int
    device: torch.device
    dtype: torch.dtype


@dataclass
class Carried:
    """A state that is carried, detached, from one call to the next; dropped where the batch changes."""

    state: Any = None  # tensors, however nested; None: no state yet
    batch: Batch | None = None  # of the last call; None: no call yet

    def state_for(self, activation: Tensor) -> Any:
        """The state of the last call; None if the batch size, the device or the dtype has changed."""
        batch = Batch(len(activation), activation.device, activation.dtype)
        if self.batch != batch:
            self.state, self.batch = None, batch
        return self.state

    def remember(self, state: Any) -> None:
        """Keep a state for the next call."""
        self.state = pytree.tree_map_only(Tensor, lambda t: t.detach(), state)

    def forget(self) -> None:
        """Drop the state: a new sequence begins."""
        self.state = self.batch = None

    def progress(self) -> Any:
        """The part that a checkpoint holds."""
        return None if self.batch is None else (self.state, self.batch.rows, self.batch.dtype)

    def resume(self, progress: Any, device: torch.device) -> None:
        """Restore the state from `progress`."""
        self.forget()
        if progress is not None:
            state, rows, dtype = progress
            self.state = pytree.tree_map_only(Tensor, lambda t: t.to(device), state)
            self.batch = Batch(rows, device, dtype)
