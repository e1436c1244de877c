"""Example inputs: the arguments of one call of the model."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from dni_fx.arguments import check_arguments
from dni_fx.errors import DniFxError, described

__all__ = ["Axis", "Inputs", "describe", "tensors_in", "to_inputs"]

Axis = tuple[int, int]  # the number of a tensor among the inputs, and one of its axes


@dataclass(frozen=True)
class Inputs:
    """Arguments for one call of the model.

    Attributes:
        source: Where the arguments come from: "given", "probed", "--input" or the file of the model.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    source: str = "given"

    def map(self, function: Callable[[Tensor], Any]) -> "Inputs":
        """A copy of the arguments with `function` applied to each tensor, at any depth of nesting."""
        args, kwargs = pytree.tree_map_only(Tensor, function, (self.args, self.kwargs))
        return Inputs(args, kwargs, self.source)

    def with_rows(self, rows: int) -> "Inputs":
        """A copy with batch size `rows`, in all tensors with as many rows as the first."""
        tensors = self.tensors()
        if not tensors or not tensors[0].dim():
            return self
        now = tensors[0].shape[0]
        return self.resized({(i, 0): rows for i, tensor in enumerate(tensors) if tensor.shape[:1] == (now,)})

    def resized(self, sizes: Mapping[Axis, int]) -> "Inputs":
        """A copy in which some axes have other sizes: they are cut off, or their last entry is repeated."""
        numbers = itertools.count()

        def resize(tensor: Tensor) -> Tensor:
            number = next(numbers)
            for axis in [axis for axis in range(tensor.dim()) if (number, axis) in sizes]:
                size = sizes[number, axis]
                last = tensor.narrow(axis, tensor.shape[axis] - 1, 1) if tensor.shape[axis] else tensor
                tensor = torch.cat([tensor, *[last] * (size - tensor.shape[axis])], axis).narrow(axis, 0, size)
            return tensor

        return self.map(resize)

    def tensors(self) -> list[Tensor]:
        return [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in a nested value, in order; dataclasses that pytree does not know are opened too."""
    found = []
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            found += tensors_in([getattr(leaf, f.name) for f in fields(leaf)])
    return found


def to_inputs(example_inputs: Any, example_kwargs: Mapping[str, Any] | None, source: str = "given") -> Inputs:
    """Inputs from one argument or a tuple of positional arguments, and keyword arguments.

    Raises:
        DniFxError: If an argument holds an array that is no tensor.
    """
    if example_inputs is None:
        args: tuple[Any, ...] = ()
    else:
        args = tuple(example_inputs) if isinstance(example_inputs, tuple | list) else (example_inputs,)
    check_arguments({"example_kwargs": example_kwargs})
    inputs = Inputs(args, dict(example_kwargs or {}), source)
    arrays = [leaf for leaf in pytree.tree_leaves((inputs.args, inputs.kwargs)) if _is_array(leaf)]
    if arrays:
        raise DniFxError(
            f"the example inputs hold {described(arrays[0])}, which is no torch tensor: give torch.as_tensor(array). "
            "An example holds tensors, plain values, and tuples, lists and dicts of these"
        )
    return inputs


def _is_array(leaf: Any) -> bool:
    """Whether a leaf is an array of another library, such as numpy; a scalar is none."""
    return not isinstance(leaf, Tensor | type) and hasattr(leaf, "__array__") and bool(getattr(leaf, "shape", ()))


def describe(inputs: Inputs) -> tuple[str, ...]:
    """One line for each argument, such as `ids: 8x128 int64`."""

    def leaf(value: Any) -> str:
        if not isinstance(value, Tensor):
            return described(value)
        return f"{'x'.join(map(str, value.shape)) or 'scalar'} {str(value.dtype).removeprefix('torch.')}"

    named = [(str(i), v) for i, v in enumerate(inputs.args)] + list(inputs.kwargs.items())
    return tuple(f"{name}: {', '.join(map(leaf, pytree.tree_leaves(value)))}" for name, value in named)
