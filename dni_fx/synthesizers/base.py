"""What every synthesizer is: a small network that predicts the gradient of an activation (Jaderberg et al. 2017)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dni_fx.errors import DniFxError

__all__ = ["Activation", "Factory", "Synthesizer", "adaptive_average", "centered", "check_size", "zero_"]


@dataclass(frozen=True)
class Activation:
    """What is known, when the model is compiled, of a tensor that crosses a cut."""

    shape: tuple[int, ...]  # with the example's batch size
    dtype: torch.dtype
    device: torch.device
    axis: int  # the feature axis: 1 for maps (N, C, ...), the last one for vectors and sequences

    @property
    def features(self) -> int:
        return self.shape[self.axis]


class Synthesizer(nn.Module):
    """Base class of synthesizers; subclass it and define `__init__(activation, context_size)` and `forward`.

    `forward(activation, context)` gets the detached activation, and the context as a tensor shaped like it but
    for the feature axis, which has `context_size` entries (None where `context_size` is 0). It returns the
    predicted gradient of each sample's own loss, shaped like the activation: dL/d activation times the batch
    size, for a loss averaged over the batch.

    Attributes:
        own_unit: It is to be told targets as they come, and is given a `loss_scale`; and by a cut in time `centered`:
            whether it is to say deviations from the mean of the batch.
    """

    own_unit = False

    def __init__(self, activation: Activation, context_size: int = 0) -> None:
        super().__init__()
        self.axis = activation.axis
        self.features = activation.features
        self.context_size = context_size

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define forward(activation, context)")

    def with_context(self, activation: Tensor, context: Tensor | None) -> Tensor:
        """Activation and context concatenated along the feature axis."""
        if context is None:
            return activation
        return torch.cat([activation, context.to(activation.dtype)], dim=self.axis)


Factory = Callable[[Activation, int], nn.Module]


def centered(rows: Tensor) -> Tensor:
    """Rows (N, F) less their mean; one alone is left as it is."""
    if len(rows) == 1:
        return rows
    wide = rows.float() if rows.dtype.itemsize < 4 else rows  # the sum of many is more than float16 holds
    return (wide - wide.mean(0)).to(rows.dtype)


def zero_(layer: nn.Module) -> nn.Module:
    """Zero weight and bias: an untrained synthesizer predicts no gradient (the paper's appendix)."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def adaptive_average(map: Tensor, positions: Sequence[int]) -> Tensor:
    """A map (N, C, ...) of one to three spatial axes, averaged to so many positions along each."""
    pools: dict[int, Any] = {
        1: nn.functional.adaptive_avg_pool1d,
        2: nn.functional.adaptive_avg_pool2d,
        3: nn.functional.adaptive_avg_pool3d,
    }
    pooled: Tensor = pools[len(positions)](map, tuple(positions))
    return pooled


def check_size(synthesizer: str, option: str, value: Any, least: int = 1) -> int:
    """The value of an option, if it is a whole number of `least` or more."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise DniFxError(f"{synthesizer}: {option}={value!r}; a whole number, {least} or more")
    return value
