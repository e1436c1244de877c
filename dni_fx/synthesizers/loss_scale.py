"""The scale of the loss under a GradScaler."""

from typing import Any

import torch
from torch import Tensor

from dni_fx.errors import DniFxError

__all__ = ["LossScale"]


class LossScale:
    """The factor by which a GradScaler multiplies the loss, and with it targets and all gradients."""

    def __init__(self, scaler: torch.amp.GradScaler) -> None:
        self.scaler = scaler

    def factor(self) -> float | Tensor:
        """A number if it is on the CPU, else a tensor, since reading a number would wait for the device."""
        if torch.compiler.is_compiling():
            raise DniFxError("the scale of a loss changes from step to step, and cannot be compiled into one graph")
        scale = self.scaler._scale
        return self.scaler.get_scale() if scale is None or scale.device.type == "cpu" else scale

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy to None: a copy of a net is trained by itself, without a scaler."""
        return type(None), ()
