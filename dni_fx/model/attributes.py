"""Submodules, parameters and buffers by path, also where an attribute of their module's class has the same name."""

import keyword
from typing import Any

from torch import nn

__all__ = ["REGISTERED", "at_path", "expression", "has_path", "is_hidden"]

REGISTERED = ("_modules", "_parameters", "_buffers")  # the dicts of an nn.Module that hold them


def at_path(module: nn.Module, path: str) -> Any:
    """The value at a dotted path. A submodule, parameter or buffer comes before any other attribute of its name.

    Raises:
        AttributeError: If there is no such value.
    """
    value: Any = module
    for name in path.split(".") if path else ():
        kind = _kind(value, name)
        value = getattr(value, name) if kind is None else getattr(value, kind)[name]
    return value


def has_path(module: nn.Module, path: str) -> bool:
    """Whether a module has a value at a dotted path."""
    try:
        at_path(module, path)
    except AttributeError:
        return False
    return True


def is_hidden(module: Any, name: str) -> bool:
    """Whether a submodule, parameter or buffer is no attribute: the class has another attribute of its name."""
    kind = _kind(module, name)
    return kind is not None and getattr(module, name, None) is not getattr(module, kind)[name]


def expression(base: str, module: nn.Module, path: str) -> str:
    """Python source for the value at a dotted path below `module`, which the expression `base` stands for."""
    value: Any = module
    for name in path.split(".") if path else ():
        if is_hidden(value, name):
            base = f"{base}.{_kind(value, name)}[{name!r}]"
        elif name.isidentifier() and not keyword.iskeyword(name):
            base = f"{base}.{name}"
        elif name.isprintable() and not {'"', "\\"} & set(name):
            base = f'getattr({base}, "{name}")'
        else:
            base = f"getattr({base}, {name!r})"
        value = at_path(value, name)
    return base


def _kind(module: Any, name: str) -> str | None:
    """The dict of a module that holds a name; None for an attribute of another kind."""
    found = (kind for kind in REGISTERED if name in getattr(module, kind)) if isinstance(module, nn.Module) else ()
    return next(iter(found), None)
