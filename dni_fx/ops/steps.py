"""A number of steps that no look at a device has to wait for."""

from typing import Any

import torch
from torch import nn

__all__ = ["CountsSteps"]


class CountsSteps(nn.Module):
    """Counts steps by a plain int; state_dicts and saved folders hold a tensor.

    Attributes:
        in_state_dict: Whether a state_dict has the number.
    """

    steps: int
    in_state_dict = True

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.in_state_dict:
            destination[f"{prefix}steps"] = torch.tensor(self.steps)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        self.steps = int(state_dict.pop(f"{prefix}steps", self.steps))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy, also one that an older version pickled, with a tensor or a buffer."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        older = self._buffers.pop("steps", None)
        self.steps = int(self.__dict__["steps"] if older is None else older)
