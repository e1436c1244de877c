"""What a capture knows of a model, beside its graph."""

from dataclasses import dataclass

from torch import nn

__all__ = ["Captured"]


@dataclass(frozen=True)
class Captured:
    """What a capture knows of a model, beside its graph; each front end with more to know has a subclass.

    A captured module holds it as `dni_captured`.

    Attributes:
        original: The model that was captured; None for a saved net that was loaded without it.
        lost_checkpoints: The model's own forward calls activation checkpointing, which the graph does not hold.
    """

    original: nn.Module | None = None
    lost_checkpoints: bool = False
