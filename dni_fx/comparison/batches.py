"""The batches that a comparison trains on, one way after another."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from dni_fx.errors import DniFxError, described
from dni_fx.model import Inputs, to_inputs

__all__ = ["Batch", "Stream", "made_up"]

_FORMS = (
    "a batch is (inputs, target), with several inputs ((x, z), target), or a dict of the arguments of a model that "
    "returns its own loss"
)


@dataclass(frozen=True)
class Batch:
    """Arguments of the model, and the target of the loss; None: the model returns its own loss, or there is none."""

    inputs: Inputs
    target: Any = None

    def to(self, device: torch.device) -> "Batch":
        """A copy on a device."""
        return Batch(
            self.inputs.map(lambda tensor: tensor.to(device)),
            pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), self.target),
        )


class Stream:
    """Batches without an end: at its end, the person's data begins again.

    Args:
        data: An iterable of batches, such as a DataLoader, or a function that returns one.
    """

    def __init__(self, data: Any) -> None:
        if not callable(data) and not hasattr(data, "__iter__"):
            raise DniFxError(f"data={described(data)}: an iterable of batches, or a function that returns one")
        self.data = data
        self._batches = self._begin()
        self._is_empty = True

    def next(self) -> Batch:
        """The next batch.

        Raises:
            DniFxError: If the data has no batch, or it is of another form.
        """
        for batch in self._batches:
            self._is_empty = False
            return _as_batch(batch)
        if self._is_empty:
            raise DniFxError("data= holds no batch, or ended and has no second beginning: give a function")
        self._batches, self._is_empty = self._begin(), True
        return self.next()

    def _begin(self) -> Iterator[Any]:
        return iter(self.data() if callable(self.data) else self.data)


def _as_batch(value: Any) -> Batch:
    if isinstance(value, Batch):
        return value
    if isinstance(value, Mapping):
        return Batch(Inputs((), dict(value), "data"))
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise DniFxError(f"data= holds {described(value)}: {_FORMS}")
    inputs, target = value
    if isinstance(inputs, Mapping):
        return Batch(Inputs((), dict(inputs), "data"), target)
    return Batch(to_inputs(inputs, None, "data"), target)


def made_up(example: Inputs, target: Any = None) -> Iterator[Batch]:
    """Batches of noise in the shapes of example inputs, with one target: losses on these mean nothing."""

    def noise(tensor: Tensor) -> Tensor:
        return torch.randn_like(tensor) if tensor.is_floating_point() else tensor

    while True:
        yield Batch(example.map(noise), target)
