"""Synthesizers that are made from a text, such as "mlp(hidden_layers=2)"."""

from typing import Any

import torch
from torch import nn

from dni_fx.synthesizers.base import Activation
from dni_fx.synthesizers.registry import resolve

CPU = torch.device("cpu")


def make(text: str, shape: tuple[int, ...], axis: int = -1, size: int = 0) -> Any:
    torch.manual_seed(0)
    axis = axis % len(shape)
    return resolve(text, shape, axis)[1](Activation(shape, torch.float32, CPU, axis), size)


def wake(synthesizer: nn.Module) -> None:
    """Move all parameters: an untrained synthesizer predicts zero, whatever its input."""
    with torch.no_grad():
        for parameter in synthesizer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
