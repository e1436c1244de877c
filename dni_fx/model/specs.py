"""Example inputs from text: `--input 8x128:int64:0-1000`."""

import math
import os
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dni_fx.errors import DniFxError, described, first_line
from dni_fx.model.inputs import Inputs
from dni_fx.units import bytes_text

__all__ = ["example_tensor", "inputs_like", "parse_specs"]

_SPEC = re.compile(
    r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>\d+(?:x\d+)*)(?::(?P<dtype>\w+))?(?::(?P<low>-?\d+)-(?P<high>-?\d+))?"
)


def parse_specs(specs: Sequence[str]) -> Inputs:
    """Inputs from `--input` texts: `[name=]SHAPE[:DTYPE[:LOW-HIGH]]`, HIGH not included.

    Raises:
        DniFxError: If a text does not have this form.
    """
    args: list[Tensor] = []
    kwargs: dict[str, Any] = {}
    for spec in specs:
        match = _SPEC.fullmatch(spec.strip())
        if match is None:
            raise DniFxError(
                f"--input {described(spec)} is not [name=]SHAPE[:DTYPE[:LOW-HIGH]], as in 64x784 or "
                "ids=8x128:int64:0-1000"
            )
        try:
            tensor = _from_match(spec, match)
        except (RuntimeError, ValueError, OverflowError) as error:  # torch cannot make such a tensor
            raise DniFxError(f"--input {described(spec)}: {first_line(error)}") from None
        if match["name"] in kwargs:
            raise DniFxError(f"--input {described(spec)}: {match['name']!r} is given twice")
        if match["name"]:
            kwargs[match["name"]] = tensor
        else:
            args.append(tensor)
    return Inputs(tuple(args), kwargs, "--input")


def inputs_like(described: Sequence[str]) -> Inputs:
    """Inputs of the shapes in a plan, which `describe` wrote.

    Raises:
        DniFxError: If an argument is neither a tensor nor a tuple of tensors.
    """
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for line in described:
        name, _, leaves = line.partition(": ")
        specs = [leaf.replace(" ", ":") for leaf in leaves.split(", ")]
        if not all(_SPEC.fullmatch(spec) for spec in specs):
            raise DniFxError(
                f"the plan's example inputs hold {line!r}, neither a tensor nor a tuple of tensors: give --input"
            )
        values = parse_specs(specs).args
        value = values[0] if len(values) == 1 else values
        if name.isdigit():
            args.append(value)
        else:
            kwargs[name] = value
    return Inputs(tuple(args), kwargs, "--input")


def _from_match(spec: str, match: re.Match[str]) -> Tensor:
    shape = [int(n) for n in match["shape"].split("x")]
    if 0 in shape:
        raise DniFxError(
            f"--input {described(spec)}: a tensor without entries does not show what forward does; give sizes of 1 or "
            "more"
        )
    dtype = getattr(torch, match["dtype"] or "float32", None)
    if not isinstance(dtype, torch.dtype):
        raise DniFxError(f"--input {described(spec)}: {match['dtype']!r} is no torch dtype; try float32, int64 or bool")
    size = math.prod(shape) * dtype.itemsize
    if size > _memory():
        raise DniFxError(
            f"--input {described(spec)}: a tensor of this shape takes more memory than the {bytes_text(_memory())} of "
            "this machine: give a smaller example"
        )
    if match["low"] is None:
        return example_tensor(shape, dtype, 0, 2)
    low, high = int(match["low"]), int(match["high"])
    if low >= high:
        raise DniFxError(f"--input {described(spec)}: the range {low}-{high} is empty")
    if dtype.is_complex or (not dtype.is_floating_point and not _holds(dtype, low, high - 1)):
        raise DniFxError(f"--input {described(spec)}: {match['dtype']} does not hold numbers from {low} to {high - 1}")
    if dtype.is_floating_point:
        return torch.empty(shape, dtype=dtype).uniform_(low, high)
    return example_tensor(shape, dtype, low, high)


def _memory() -> int:
    """The bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**48


def _holds(dtype: torch.dtype, low: int, high: int) -> bool:
    least, most = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    return least <= low and high <= most


def example_tensor(shape: Sequence[int], dtype: torch.dtype, low: int, high: int) -> Tensor:
    """Normal random numbers for a floating or complex dtype, else uniform integers from `low` to `high` - 1."""
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(list(shape), dtype=dtype)
    return torch.randint(low, high, list(shape)).to(dtype)
