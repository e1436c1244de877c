"""A synthesizer that predicts a given gradient, and keeps the target that comes back."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dni_fx.runtime import DecoupledModule
from dni_fx.synthesizers import Activation, Synthesizer

__all__ = ["Scripted", "scripted_synthesizers"]


@dataclass
class _Received:
    target: Tensor | None = None


class Scripted(Synthesizer):
    """Predicts a given gradient, and keeps the target that comes back.

    Attributes:
        prediction: The gradient to predict, of each sample's own loss; None: zero.
    """

    def __init__(self, activation: Activation, context_size: int = 0) -> None:
        super().__init__(activation, context_size)
        self.prediction: Tensor | None = None
        self._received = _Received()  # `preserved` puts plain attributes back after every step, but not their content
        self.slope = nn.Parameter(torch.zeros(()))  # a synthesizer without parameters gets no target

    @property
    def target(self) -> Tensor | None:
        """The gradient of the mean loss that the last backward pass sent; None before that pass."""
        return self._received.target

    @target.setter
    def target(self, target: Tensor | None) -> None:
        self._received.target = target

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
        scripted = torch.zeros_like(activation) if self.prediction is None else self.prediction
        prediction = scripted + self.slope * activation
        synthetic = scripted / self.samples(scripted)
        received = self._received

        def keep_target(error: Tensor | None) -> None:
            received.target = None if error is None else (synthetic - error).detach()  # None: it was not finite

        if prediction.requires_grad:  # not so at the end of a window
            prediction.register_hook(keep_target)
        return prediction


def scripted_synthesizers(net: DecoupledModule) -> dict[str, Scripted]:
    """The scripted synthesizers of a net, by the name of their crossing."""
    return {name: one for name, one in net.dni.synthesizers.items() if isinstance(one, Scripted)}
