"""The facts about a captured model that its graph does not hold."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from dni_fx.model.call import Path
from dni_fx.model.reads import Reads

__all__ = ["Captured"]


@dataclass(frozen=True)
class Captured:
    """The facts about a captured model that its graph does not hold. Front ends that record more have a subclass.

    A captured module holds the facts as `dni_captured`.

    Attributes:
        original: The model that was captured; None for a saved net that was loaded without the model.
        lost_checkpoints: The model's own forward calls activation checkpointing, and the graph does not.
        reads: The plain values that the model's code read while the graph was made, which the graph fixes.
        forms: The arguments of a graph that fx traced, by name, in order: the paths of the leaves of an argument that
            holds tensors; None for an argument of fixed value.
        again: Captures the model again after a value has changed; returns the facts if the graph is the same. Copies
            and saved nets have none.
    """

    original: nn.Module | None = None
    lost_checkpoints: bool = False
    reads: Reads = field(default_factory=Reads)
    forms: Mapping[str, tuple[Path, ...] | None] = field(default_factory=dict)
    again: "Callable[[Captured], Captured | None] | None" = field(default=None, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"again": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Fill in what a pickle of an older version lacks."""
        self.__dict__.update({"reads": Reads(), "forms": {}, "again": None} | state)
