"""Synthesizers without a memory: linear, mlp, conv."""

from torch import Tensor, nn

from dni_fx.errors import DniFxError
from dni_fx.synthesizers.base import Activation, Synthesizer, zero_
from dni_fx.synthesizers.registry import register

__all__ = ["MLP", "Conv", "Linear"]


@register("linear")
class Linear(Synthesizer):
    """One linear layer over the feature axis, at every position alike; for vectors and sequences."""

    hidden_layers = 0

    def __init__(self, activation: Activation, context_size: int = 0) -> None:
        super().__init__(activation, context_size)
        sizes = [self.features + context_size] + [self.features] * (self.hidden_layers + 1)
        layers: list[nn.Module] = []
        for n_in, n_out in zip(sizes[:-2], sizes[1:-1], strict=True):
            layers += [nn.Linear(n_in, n_out), nn.ReLU()]
        self.net = nn.Sequential(*layers, zero_(nn.Linear(sizes[-2], sizes[-1])))

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
        joined = self.with_context(activation, context).movedim(self.axis, -1)
        predicted: Tensor = self.net(joined)
        return predicted.movedim(-1, self.axis)


@register("mlp")
class MLP(Linear):
    """One hidden ReLU layer as wide as the activation, then a linear one; over the feature axis."""

    hidden_layers = 1


@register("conv")
class Conv(Synthesizer):
    """One 3-wide convolution that keeps the shape, for maps (N, C, ...) of one to three spatial axes, any size."""

    def __init__(self, activation: Activation, context_size: int = 0) -> None:
        super().__init__(activation, context_size)
        layers = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
        if len(activation.shape) not in layers or activation.axis != 1:
            raise DniFxError(
                f"a conv synthesizer needs a map (N, C, ...), not a tensor of shape {list(activation.shape)} with "
                f"its features on axis {activation.axis}; use linear"
            )
        layer = layers[len(activation.shape)]
        self.net = zero_(layer(self.features + context_size, self.features, kernel_size=3, padding=1))

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
        predicted: Tensor = self.net(self.with_context(activation, context))
        return predicted
