"""Statements of `model.py` that work whatever the names of classes, submodules and buffers."""

import builtins
import keyword
import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dni_fx.model import is_hidden

__all__ = ["VALUE", "assignment", "buffer_statements", "class_name", "empty", "is_name"]

VALUE = "<value>"  # stands for an expression in a statement


def class_name(model: str) -> str:
    """The name of the class in `model.py` for a model of the class `model`: no name that `model.py` needs itself."""
    name = model if model.isidentifier() else re.sub(r"\W|^(?=\d)", "_", model)
    return f"{name}_" if keyword.iskeyword(name) or name in ("torch", "dni_fx", *dir(builtins)) else name


def is_name(text: str) -> bool:
    """Whether Python source can have a text as a name."""
    return text.isidentifier() and not keyword.iskeyword(text)


def assignment(owner: str, module: nn.Module, name: str) -> str:
    """A statement that gives a module a child, with `VALUE` for the child."""
    if owner == "self" and is_name(name):
        return f"self.{name} = {VALUE}"
    hidden = is_hidden(module, name)
    return f"{owner}._modules[{name!r}] = {VALUE}" if hidden else f"{owner}.add_module({name!r}, {VALUE})"


def buffer_statements(owner: str, name: str, buffer: Tensor | None, *, persistent: bool) -> Iterator[str]:
    """Statements that give a module a buffer."""
    value = None if buffer is None else empty(buffer)
    if not hasattr(nn.Module, name):
        yield f"{owner}.register_buffer({name!r}, {value}, persistent={persistent})"
        return
    yield f"{owner}._buffers[{name!r}] = {value}"
    if not persistent:
        yield f"{owner}._non_persistent_buffers_set.add({name!r})"


def empty(tensor: Tensor) -> str:
    """An expression for zeros with the shape and dtype of a tensor."""
    dtype = "" if tensor.dtype is torch.float32 else f", dtype={tensor.dtype}"
    return f"torch.zeros({list(tensor.shape)}{dtype})"
