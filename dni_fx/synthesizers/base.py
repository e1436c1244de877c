"""The base of synthesizers: small networks that predict the gradient of an activation (Jaderberg et al. 2017)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dni_fx import ops
from dni_fx.errors import DniFxError
from dni_fx.synthesizers.carried import Carried
from dni_fx.synthesizers.loss_scale import LossScale

__all__ = ["Activation", "Factory", "Synthesizer", "adaptive_average", "centered", "check_size", "zero_"]


@dataclass(frozen=True)
class Activation:
    """A tensor that crosses a cut, as known when the model is compiled; its first axis is the batch."""

    shape: tuple[int, ...]  # with the example's batch size
    dtype: torch.dtype
    device: torch.device
    axis: int  # the feature axis: 1 for maps (N, C, ...), -1 for vectors and sequences, which may have more axes later
    rows: int = 1  # entries of the first axis for each sample, as in (N*T, F); 0: their number varies

    @property
    def features(self) -> int:
        return self.shape[self.axis]


class Synthesizer(nn.Module):
    """Base class of synthesizers; subclass it and define `__init__(activation, context_size)` and `forward`.

    `forward(activation, context)` gets the detached activation, batch first, and the context as a tensor shaped like it
    but for the feature axis, which has `context_size` entries (None where `context_size` is 0). It returns the
    predicted gradient of each sample's own loss, shaped like the activation: dL/d activation times the batch
    size, for a loss averaged over the batch.

    A cut also takes any other `nn.Module` with this `forward`: it has the defaults below.

    Attributes:
        own_unit: Whether `Training.scale` leaves the targets of this synthesizer as they are; then the synthesizer also
            centers its predictions itself (see `configure`).
        carried: The state that goes from one call to the next, part of a checkpoint; None: no state.
    """

    own_unit = False
    rows = 1  # also in a synthesizer that an older version pickled
    carried: Carried | None = None

    def __init__(self, activation: Activation, context_size: int = 0) -> None:
        super().__init__()
        self.axis = activation.axis
        self.rows = activation.rows
        self.features = activation.features
        self.context_size = context_size

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define forward(activation, context)")

    def configure(self, *, loss_scale: LossScale | None, centered: bool) -> None:
        """Take the settings that depend on the cut; called when the cut is made, and again when a scaler is set.

        Args:
            loss_scale: The factor of the loss, and of targets; None: 1.
            centered: With `own_unit`: whether predictions are deviations from the mean over the batch.
        """

    def samples(self, activation: Tensor) -> int:
        """The number of samples in an activation or a prediction."""
        return ops.batch_size(activation, rows=self.rows)

    def with_context(self, activation: Tensor, context: Tensor | None) -> Tensor:
        """Activation and context concatenated along the feature axis."""
        if context is None:
            return activation
        return torch.cat([activation, context.to(activation.dtype)], dim=self.axis)


Factory = Callable[[Activation, int], nn.Module]


def centered(rows: Tensor) -> Tensor:
    """Rows (N, F) less their mean; a single row stays as it is."""
    if len(rows) == 1:
        return rows
    wide = rows.float() if rows.dtype.itemsize < 4 else rows  # float16 cannot hold the sum of many rows
    return (wide - wide.mean(0)).to(rows.dtype)


def zero_(layer: nn.Module) -> nn.Module:
    """Zero weight and bias: an untrained synthesizer predicts no gradient (the paper's appendix)."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def adaptive_average(map: Tensor, positions: Sequence[int]) -> Tensor:
    """Average a map (N, C, ...) of one to three spatial axes to the given number of positions along each axis."""
    pools: dict[int, Any] = {
        1: nn.functional.adaptive_avg_pool1d,
        2: nn.functional.adaptive_avg_pool2d,
        3: nn.functional.adaptive_avg_pool3d,
    }
    pooled: Tensor = pools[len(positions)](map, tuple(positions))
    return pooled


def check_size(synthesizer: str, option: str, value: Any, least: int = 1) -> int:
    """Return the value of an option, a whole number of `least` or more; else raise a DniFxError."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise DniFxError(f"{synthesizer}: {option}={value!r}; a whole number, {least} or more")
    return value
