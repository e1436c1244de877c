"""The arguments of a call: by name, by path, and in one canonical form."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.utils import _pytree as pytree

__all__ = ["Path", "by_name", "by_path", "canonical", "with_arguments", "with_leaves"]

Path = tuple[int | str, ...]  # the indices and keys from a nested value to one of its leaves


def by_name(forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name; the entries of a `**kwargs` parameter are arguments of their own names."""
    signature = inspect.signature(forward)
    named: dict[str, Any] = {}
    for name, value in signature.bind(*args, **kwargs).arguments.items():
        named |= value if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD else {name: value}
    return named


def by_path(value: Any) -> dict[Path, Any]:
    """The leaves of a nested value, by path."""
    keyed, _ = pytree.tree_flatten_with_path(value)
    return {tuple(_key(entry) for entry in entries): leaf for entries, leaf in keyed}


def with_leaves(value: Any, new_leaves: Mapping[Path, Any]) -> Any:
    """A copy of a nested value with the leaves at the paths in `new_leaves` replaced."""
    leaves = by_path(value)
    return pytree.tree_unflatten((leaves | dict(new_leaves)).values(), pytree.tree_structure(value))


def _key(entry: Any) -> int | str:
    """The index, key or attribute name that one of pytree's key entries holds."""
    key: int | str = next(getattr(entry, name) for name in ("idx", "key", "name") if hasattr(entry, name))
    return key


def canonical(
    forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """One form for all ways to write the same call: arguments that equal their default are left out."""
    signature = inspect.signature(forward)
    bound = signature.bind(*args, **kwargs)
    positional_after = False  # a later argument is passed by position, so none before it can be left out
    for name, value in reversed(list(bound.arguments.items())):
        parameter = signature.parameters[name]
        if parameter.kind is parameter.VAR_KEYWORD:
            bound.arguments[name] = dict(sorted(value.items()))
        elif not positional_after and _is_default(value, parameter.default):
            del bound.arguments[name]
        else:
            positional_after |= parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL)
    return bound.args, bound.kwargs


def with_arguments(
    forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], new_values: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A copy of a call with the arguments named in `new_values` replaced."""
    signature = inspect.signature(forward)
    bound = signature.bind(*args, **kwargs)
    for name, value in new_values.items():
        if name in signature.parameters:
            bound.arguments[name] = value
        else:
            var_keyword = next(n for n, p in signature.parameters.items() if p.kind is p.VAR_KEYWORD)
            bound.arguments[var_keyword] = {**bound.arguments.get(var_keyword, {}), name: value}
    return bound.args, bound.kwargs


def _is_default(value: Any, default: Any) -> bool:
    is_literal = value is None or isinstance(value, bool | int | float | str)
    return is_literal and type(value) is type(default) and value == default
