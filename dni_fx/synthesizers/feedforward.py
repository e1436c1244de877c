"""Synthesizers without a memory: linear, mlp, conv, zero."""

import math

import torch
from torch import Tensor, nn

from dni_fx.errors import DniFxError
from dni_fx.synthesizers.base import Activation, Synthesizer, adaptive_average, check_size, zero_
from dni_fx.synthesizers.registry import register

__all__ = ["MLP", "Conv", "Linear", "Zero"]

NONLINEARITIES: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "gelu": nn.GELU}


@register("mlp")
class MLP(Synthesizer):
    """Hidden layers (by default one, as wide as the activation), then a linear one; over the feature axis.

    The weights are the same at every position. The paper uses `mlp(hidden_layers=2, hidden_size=1024,
    batch_norm=True)` for unconditioned DNI (Jaderberg et al. 2017, supplement). A batch norm takes its statistics over
    batch and positions.
    """

    def __init__(
        self,
        activation: Activation,
        context_size: int = 0,
        *,
        hidden_layers: int = 1,
        hidden_size: int | None = None,
        batch_norm: bool = False,
        nonlinearity: str = "relu",
    ) -> None:
        super().__init__(activation, context_size)
        check_size("mlp", "hidden_layers", hidden_layers, least=0)
        width = check_size("mlp", "hidden_size", self.features if hidden_size is None else hidden_size)
        if nonlinearity not in NONLINEARITIES:
            raise DniFxError(f"mlp: nonlinearity={nonlinearity!r}; there are {', '.join(NONLINEARITIES)}")
        layers: list[nn.Module] = []
        size = self.features + context_size
        for _ in range(hidden_layers):
            layers.append(nn.Linear(size, width, bias=not batch_norm))
            layers += [Norm(width)] if batch_norm else []
            layers.append(NONLINEARITIES[nonlinearity]())
            size = width
        self.net = nn.Sequential(*layers, zero_(nn.Linear(size, self.features)))

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
        joined = self.with_context(activation, context).movedim(self.axis, -1)
        predicted: Tensor = self.net(joined.reshape(-1, joined.shape[-1]))
        return predicted.reshape(*joined.shape[:-1], self.features).movedim(-1, self.axis)


@register("linear")
class Linear(MLP):
    """One linear layer over the feature axis, the same at every position; for vectors and sequences."""

    def __init__(self, activation: Activation, context_size: int = 0) -> None:
        super().__init__(activation, context_size, hidden_layers=0)


@register("conv")
class Conv(Synthesizer):
    """Convolutions that keep the shape (by default one, 3 wide), for maps (N, C, ...) of one to three axes, any size.

    Zero padding, and labels as extra feature maps (Jaderberg et al. 2017, supplement). With `pool`, means over so many
    positions along each axis have one prediction.
    """

    pool = 1  # also in a synthesizer that an older version pickled

    def __init__(
        self,
        activation: Activation,
        context_size: int = 0,
        *,
        hidden_layers: int = 0,
        channels: int | None = None,
        kernel_size: int = 3,
        batch_norm: bool = False,
        pool: int = 1,
    ) -> None:
        super().__init__(activation, context_size)
        convolutions = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
        if len(activation.shape) not in convolutions or activation.axis != 1:
            raise DniFxError(
                f"a conv synthesizer needs a map (N, C, ...), not a tensor of shape {list(activation.shape)} with "
                f"its features on axis {activation.axis}; use linear"
            )
        check_size("conv", "hidden_layers", hidden_layers, least=0)
        width = check_size("conv", "channels", self.features if channels is None else channels)
        if check_size("conv", "kernel_size", kernel_size) % 2 == 0:
            raise DniFxError(f"conv: kernel_size={kernel_size}; an odd one, which keeps the shape")
        self.pool = check_size("conv", "pool", pool)
        make = convolutions[len(activation.shape)]
        layers: list[nn.Module] = []
        size = self.features + context_size
        for _ in range(hidden_layers):
            layers.append(make(size, width, kernel_size, padding=kernel_size // 2, bias=not batch_norm))
            layers += [Norm(width)] if batch_norm else []
            layers.append(nn.ReLU())
            size = width
        self.net = nn.Sequential(*layers, zero_(make(size, self.features, kernel_size, padding=kernel_size // 2)))

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
        joined, sizes = self.with_context(activation, context), activation.shape[2:]
        if self.pool > 1:
            joined = adaptive_average(joined, [math.ceil(size / self.pool) for size in sizes])
        predicted: Tensor = self.net(joined)
        if self.pool > 1:  # several times as fast as nn.functional.interpolate
            for axis, size in enumerate(sizes, start=2):
                predicted = predicted.repeat_interleave(self.pool, axis).narrow(axis, 0, size)
        return predicted


@register("zero")
class Zero(Synthesizer):
    """Zeros: the segments below the last cut do not learn. The control ("no bprop": Jaderberg et al. 2017)."""

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
        return torch.zeros_like(activation)


class Norm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over axis 1 of any shape; a single row, which has no variance, is normalised by running statistics."""

    def forward(self, input: Tensor) -> Tensor:
        alone = input.numel() == input.shape[1]
        mean, variance = self.running_mean, self.running_var
        training = self.training and not alone
        return nn.functional.batch_norm(input, mean, variance, self.weight, self.bias, training, eps=self.eps)

    def _check_input_dim(self, input: Tensor) -> None:
        pass
