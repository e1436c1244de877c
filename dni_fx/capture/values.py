"""Tensor attributes whose values forward reads as Python numbers, which a trace would fix."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from dni_fx.errors import CaptureError

__all__ = ["refused_values"]

_READERS = {
    Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.__index__,
    Tensor.__complex__, Tensor.__array__, torch.equal, torch.allclose,
}  # fmt: skip


class _Values(TorchFunctionMode):
    """Raises an error where a tensor attribute, or a tensor that is computed from one, becomes a Python value."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names = names  # by the id of the tensor
        self.computed: list[Tensor] = []  # kept, so that no id is used twice

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = next((self.names[id(one)] for one in pytree.tree_leaves(args) if id(one) in self.names), None)
        if name is not None and func in _READERS:
            raise CaptureError(f"forward reads the value of {name!r} as a Python number, which a trace would fix")
        result = func(*args, **(kwargs or {}))
        if name is not None and type(result) is Tensor:
            self.names[id(result)] = name
            self.computed.append(result)
        return result


@contextmanager
def refused_values(model: nn.Module) -> Iterator[None]:
    """Raise a CaptureError where forward reads the value of a tensor that is a plain attribute of a module."""
    attributes = [(f"{path}.{k}".lstrip("."), v) for path, m in model.named_modules() for k, v in vars(m).items()]
    with _Values({id(value): name for name, value in attributes if isinstance(value, Tensor)}):
        yield
