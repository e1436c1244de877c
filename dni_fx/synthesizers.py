"""Synthesizers: small networks that predict the gradient of an activation (Jaderberg et al. 2017, Sect. 2)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dni_fx.errors import ContextError, DniFxError

__all__ = ["MLP", "REGISTRY", "Activation", "Conv", "Factory", "Linear", "Synthesizer", "register", "resolve"]


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
    """

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
REGISTRY: dict[str, Factory] = {}


def register(name: str) -> Callable[[Factory], Factory]:
    """Make a synthesizer available by name, to `transform(synthesizer=name)` and the command line."""

    def add(factory: Factory) -> Factory:
        REGISTRY[name] = factory
        return factory

    return add


def resolve(synthesizer: str | Factory, shape: tuple[int, ...], axis: int) -> tuple[str, Factory]:
    """The name and the factory that `synthesizer` stands for; "auto" picks conv for maps, else linear."""
    if not isinstance(synthesizer, str):
        return getattr(synthesizer, "__name__", type(synthesizer).__name__), synthesizer
    if synthesizer == "auto":
        is_map = axis == 1 and len(shape) in (3, 4, 5)
        synthesizer = "conv" if is_map else "linear"
    if synthesizer not in REGISTRY:
        raise DniFxError(f"no synthesizer named {synthesizer!r}; there are auto, {', '.join(sorted(REGISTRY))}")
    return synthesizer, REGISTRY[synthesizer]


def zero_(layer: nn.Module) -> nn.Module:
    """Zero weight and bias: an untrained synthesizer predicts no gradient (the paper's appendix)."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


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


def expand_context(context: Tensor, activation: Tensor, axis: int, *, classes: int | None, size: int) -> Tensor:
    """Bring a context to the activation's shape, but for the feature axis.

    Args:
        context: With `classes`: integer labels (N,), (N, T) or (N, H, W), or one-hot or soft labels with a last
            axis of `classes`. Else a float vector (N, size), or one for each position, features last.
        activation: (N, ...); its axes other than `axis` are what the context is repeated over.
        axis: The activation's feature axis.
        classes: Number of labels.
        size: Entries of the result's feature axis.

    Raises:
        ContextError: If the context does not fit.
    """
    if classes is not None and not context.is_floating_point():
        _check_labels(context, classes)
        try:
            context = nn.functional.one_hot(context.long(), classes)
        except RuntimeError as error:
            raise ContextError(f"dni_context: labels must lie between 0 and {classes - 1} ({error})") from None
    if context.dim() == 0 or context.shape[-1] != size:
        wanted = f"integer labels, or {size} values a row" if classes is not None else f"{size} values a row"
        raise ContextError(f"dni_context has shape {list(context.shape)}; expected {wanted}")
    axis = axis % activation.dim()
    wanted_shape = [n for i, n in enumerate(activation.shape) if i != axis]
    lead = list(context.shape[:-1])
    if lead != wanted_shape[: len(lead)] or (wanted_shape and not lead):
        raise ContextError(
            f"dni_context is for {lead} positions, but the activation at the cut has {wanted_shape}: give integer "
            "labels (N,), or a row of values a sample (N, values), in the order of the batch; one-hot labels are floats"
        )
    context = context.reshape(*lead, *[1] * (len(wanted_shape) - len(lead)), size).expand(*wanted_shape, size)
    return context.movedim(-1, axis)


def _check_labels(labels: Tensor, classes: int) -> None:
    """Only where a look is free: on a GPU it would wait for the device, and a compiler cannot look."""
    if labels.device.type == "cpu" and labels.numel() and not torch.compiler.is_compiling():
        least, most = int(labels.min()), int(labels.max())
        if least < 0 or most >= classes:
            raise ContextError(
                f"dni_context holds the label {least if least < 0 else most}; expected labels from 0 to {classes - 1}: "
                "give positions that the loss ignores any of these"
            )
