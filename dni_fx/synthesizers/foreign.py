"""Synthesizers with the interface of pytorch-dni."""

import functools
from typing import Any

from torch import Tensor, nn

from dni_fx.errors import DniFxError
from dni_fx.synthesizers.base import Activation, Factory, Synthesizer
from dni_fx.synthesizers.carried import Carried
from dni_fx.synthesizers.imported import describe_factory, import_factory, why_not_importable

__all__ = ["Adapted", "adapt", "adapted"]


class Adapted(Synthesizer):
    """A module with `forward(input, hidden) -> (output, hidden)`; `hidden` goes on to the next call."""

    carried: Carried

    def __init__(self, module: nn.Module, activation: Activation, context_size: int) -> None:
        super().__init__(activation, context_size)
        self.module = module
        self.carried = Carried()

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
        joined = self.with_context(activation, context).movedim(self.axis, -1)
        output, hidden = self.module(joined, self.carried.state_for(activation))
        self.carried.remember(hidden)
        if output.numel() != activation.numel():
            raise DniFxError(
                f"synthesizer {type(self.module).__name__} gave {list(output.shape)} for an activation of shape "
                f"{list(activation.shape)}"
            )
        predicted: Tensor = output.reshape(*joined.shape[:-1], self.features)
        return predicted.movedim(-1, self.axis)

    def reset(self) -> None:
        """Drop the carried state: a new sequence begins."""
        self.carried.forget()


def adapt(cls: type[nn.Module], hidden_size: int = 10, **options: Any) -> Factory:
    """A factory for `transform(synthesizer=...)` from a class with the interface of pytorch-dni.

    Args:
        cls: Called as `cls(input_size, hidden_size, output_size, **options)`, with sizes of the last axis; a context,
            where there is one, is concatenated to the input.
        hidden_size: An argument of `cls`.

    Raises:
        DniFxError: If `cls` is no class of modules.
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise DniFxError(f"expected a class of modules, not {cls!r}")
    path = describe_factory(cls)[1]
    named = cls if why_not_importable(path) else path
    factory = functools.partial(adapted, cls=named, hidden_size=hidden_size, **options)
    factory.__name__ = cls.__name__  # type: ignore[attr-defined]
    return factory


def adapted(
    activation: Activation, context_size: int = 0, *, cls: type[nn.Module] | str, hidden_size: int = 10, **options: Any
) -> nn.Module:
    """A synthesizer of the class, or of the class at a path: saved plans have this function's name and arguments."""
    make: Any = import_factory(cls) if isinstance(cls, str) else cls
    features = activation.features
    module = make(input_size=features + context_size, hidden_size=hidden_size, output_size=features, **options)
    return Adapted(module, activation, context_size)
