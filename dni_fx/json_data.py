"""Dataclasses from the plain data of JSON: every value is checked against the type of its field."""

import math
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from dni_fx.errors import described

__all__ = ["finite", "read"]

T = TypeVar("T")


def read(cls: type[T], data: Any, where: str = "") -> T:
    """A dataclass from a dict that holds the values of its fields; fields with a default may be missing.

    Raises:
        ValueError: If a value is missing, is not known, or is not of the type of its field; the message says where.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{where or 'the text'} is {described(data)}, not a dict")
    kinds, entries = get_type_hints(cls), fields(cls)  # type: ignore[arg-type]
    strange = sorted(data.keys() - kinds.keys())
    if strange:
        raise ValueError(f"{where or 'the text'} has an entry {described(strange[0])}, which is not known")
    values = {}
    for entry in entries:
        if entry.name in data:
            values[entry.name] = _value(kinds[entry.name], data[entry.name], f"{where}.{entry.name}".lstrip("."))
        elif entry.default is MISSING and entry.default_factory is MISSING:
            raise ValueError(f"{where or 'the text'} has no entry {entry.name!r}")
    return cls(**values)


def _value(kind: Any, value: Any, where: str) -> Any:
    """The value of a field of the type `kind`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and is_dataclass(kind):
        return read(kind, value, where)
    if origin is UnionType:
        return _one_of(arguments, value, where)
    if origin is tuple and isinstance(value, list):
        kinds = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        if len(kinds) == len(value):
            pairs = zip(kinds, value, strict=True)
            return tuple(_value(one, entry, f"{where}.{index}") for index, (one, entry) in enumerate(pairs))
    if origin is dict and isinstance(value, dict):
        return {name: _value(arguments[1], entry, f"{where}.{name}") for name, entry in value.items()}
    if type(value) is kind or (kind is float and type(value) is int):
        return value
    raise ValueError(f"{where} is {described(value)}, not {kind.__name__ if isinstance(kind, type) else kind}")


def _one_of(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    """The value of a field of one of several types."""
    if value is None and NoneType in kinds:
        return None
    reasons = []
    for kind in kinds:
        if kind is not NoneType:
            try:
                return _value(kind, value, where)
            except ValueError as error:
                reasons.append(error)
    raise reasons[0]


def finite(value: Any) -> Any:
    """The value for JSON, which has no NaN: None in its place."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
