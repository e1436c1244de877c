"""The person's own synthesizers: where a plan finds their classes and functions again, in another process."""

import ast
import functools
import pkgutil
import sys
from collections.abc import Callable
from typing import Any

from dni_fx.errors import DniFxError
from dni_fx.model import errors_of

__all__ = ["describe_factory", "import_factory", "is_findable", "why_not_importable"]

_OUTSIDE = "<"  # begins or marks a part of a path that no module holds under its name


def describe_factory(factory: Callable[..., Any]) -> tuple[str, str]:
    """The name of a factory in a plan, with options as in "Mine(hidden=3)", and its path as in "package.module:Mine".

    The path of a factory that cannot be imported says why: see `why_not_importable`.
    """
    if isinstance(factory, functools.partial):
        name, path = describe_factory(factory.func)
        if not factory.args and all(map(_is_literal, factory.keywords.values())):
            options = ", ".join(f"{option}={value!r}" for option, value in factory.keywords.items())
            return f"{name}({options})" if options else name, path
        return getattr(factory, "__name__", name), f"{path}(...)"
    name = getattr(factory, "__name__", type(factory).__name__)
    module, qualname = getattr(factory, "__module__", None), getattr(factory, "__qualname__", None)
    if module is None or qualname is None:
        return name, f"{type(factory).__module__}:{_OUTSIDE}{type(factory).__qualname__}>"
    path = f"{module}:{qualname}"
    if why_not_importable(path) or _found(path) == factory:
        return name, path
    return name, f"{module}:{_OUTSIDE}{qualname}>"


def why_not_importable(path: str) -> str:
    """Why no other process can import what is at a path; empty if a process can."""
    module, _, qualname = path.partition(":")
    if module == "__main__":
        return "is defined in the script or notebook itself"
    if "<lambda>" in qualname:
        return "is a lambda"
    if "<locals>" in qualname:
        return "is defined in a function"
    if _OUTSIDE in qualname:
        return f"is not what the module {module} holds under its name"
    if qualname.endswith("(...)"):
        return "was bound to arguments that are not plain values with names"
    if not is_findable(module):
        return f"is defined in a file that cannot be imported as {module}"
    return ""


def import_factory(path: str) -> Any:
    """Import the class or function at a path as in "package.module:Mine".

    Raises:
        DniFxError: If there is none.
        TargetError: If its module raises an error.
    """
    reason = why_not_importable(path)
    with errors_of(path):
        try:
            found = pkgutil.resolve_name(path) if not reason else None
        except (ImportError, AttributeError, ValueError) as error:
            reason = f"cannot be imported ({error})"
    if reason or not callable(found):
        raise DniFxError(f"the synthesizer {path} {reason or 'is no class or function'}: make it importable again")
    return found


def _found(path: str) -> object:
    """The value at a path, if its module has been imported; None if there is none."""
    module, _, qualname = path.partition(":")
    value: object = sys.modules.get(module)
    for part in qualname.split("."):
        value = getattr(value, part, None)
    return value


def is_findable(module: str) -> bool:
    """Whether `import module` finds the module; one that dni-fx loaded from a file may have another name."""
    parent, _, _ = module.rpartition(".")
    try:
        path = getattr(sys.modules.get(parent) or pkgutil.resolve_name(parent), "__path__", None) if parent else None
    except (ImportError, AttributeError, ValueError):
        return False
    finders = [finder.find_spec for finder in sys.meta_path if hasattr(finder, "find_spec")]
    return any(find_spec(module, path) is not None for find_spec in finders)


def _is_literal(value: Any) -> bool:
    """Whether the text of a value gives an equal value."""
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError):
        return False
