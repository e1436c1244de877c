"""The factor of the loss: of a GradScaler, and of a loop that accumulates gradients."""

from typing import Any

import torch
from torch import Tensor

from dni_fx.errors import DniFxError

__all__ = ["LossScale"]


class LossScale:
    """The factor by which the training loop multiplies the mean loss of a batch, and with it targets and gradients.

    Args:
        scaler: The GradScaler that multiplies the loss; None: no GradScaler.
        divisor: The number by which the loop divides the loss, such as that of the batches whose gradients accumulate.
    """

    def __init__(self, scaler: torch.amp.GradScaler | None = None, divisor: float = 1.0) -> None:
        self.scaler, self.divisor = scaler, divisor

    def factor(self) -> float | Tensor:
        """A number if it is on the CPU, else a tensor, since reading a number would wait for the device."""
        if self.scaler is None:
            return 1 / self.divisor
        if torch.compiler.is_compiling():
            raise DniFxError("the scale of a loss changes from step to step, and cannot be compiled into one graph")
        scale = self.scaler._scale
        if scale is None or scale.device.type == "cpu":
            return self.scaler.get_scale() / self.divisor
        return scale / self.divisor

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of a net is trained by itself, without a scaler: copy to None if that leaves no factor."""
        return (type(None), ()) if self.divisor == 1 else (LossScale, (None, self.divisor))
