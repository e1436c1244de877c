"""The arguments of a call: by name, by path, and in one canonical form."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.utils import _pytree as pytree

__all__ = ["Path", "by_name", "by_path", "canonical", "replaced", "with_arguments"]

Path = tuple[int | str, ...]


def by_name(forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name; those of a `**kwargs` beside the others."""
    signature = inspect.signature(forward)
    named: dict[str, Any] = {}
    for name, value in signature.bind(*args, **kwargs).arguments.items():
        named |= value if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD else {name: value}
    return named


def by_path(value: Any) -> dict[Path, Any]:
    """The leaves of a nested value by the places and keys on the way to them."""
    keyed, _ = pytree.tree_flatten_with_path(value)
    return {tuple(_key(key) for key in keys): leaf for keys, leaf in keyed}


def replaced(value: Any, others: Mapping[Path, Any]) -> Any:
    """The same nested value with other leaves at these paths."""
    leaves = by_path(value)
    return pytree.tree_unflatten((leaves | dict(others)).values(), pytree.tree_structure(value))


def _key(key: Any) -> int | str:
    found: int | str = next(getattr(key, name) for name in ("idx", "key", "name") if hasattr(key, name))
    return found


def canonical(
    forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same call in one form, however it was written: arguments that have their default value are left out."""
    signature = inspect.signature(forward)
    bound = signature.bind(*args, **kwargs)
    by_place = False  # something after it is given by its place alone
    for name, value in reversed(list(bound.arguments.items())):
        parameter = signature.parameters[name]
        if parameter.kind is parameter.VAR_KEYWORD:
            bound.arguments[name] = dict(sorted(value.items()))
        elif not by_place and _same(value, parameter.default):
            del bound.arguments[name]
        else:
            by_place |= parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL)
    return bound.args, bound.kwargs


def with_arguments(
    forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], others: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same call with other values for the arguments of these names."""
    signature = inspect.signature(forward)
    bound = signature.bind(*args, **kwargs)
    for name, value in others.items():
        if name in signature.parameters:
            bound.arguments[name] = value
        else:
            more = next(n for n, p in signature.parameters.items() if p.kind is p.VAR_KEYWORD)
            bound.arguments[more] = {**bound.arguments.get(more, {}), name: value}
    return bound.args, bound.kwargs


def _same(value: Any, default: Any) -> bool:
    plain = value is None or isinstance(value, bool | int | float | str)
    return plain and type(value) is type(default) and value == default
