"""Arguments of a call whose value or form a graph fixes."""

from collections.abc import Mapping
from inspect import Parameter
from typing import Any

from torch import Tensor

__all__ = ["other_argument", "same_value", "shown"]

_LONGEST = 60  # characters of a value in a message


def other_argument(name: str, was: str, now: object, *, was_float: bool = False) -> TypeError:
    """The error for an argument that the graph does not take, since it differs from the captured one.

    Args:
        was: The captured argument, as `shown`.
        was_float: The captured argument was a float, in whose place the model may take a tensor.
    """
    takes_tensor = was_float and isinstance(now, int | float | Tensor) and not isinstance(now, bool)
    example = f"an example that gives a tensor for {name}" if takes_tensor else "an example like this call"
    return TypeError(
        f"argument {name!r} was {was} when the model was captured and is {shown(now)} now, but the graph holds for the "
        f'captured one only: transform the model with {example}, or use frontend="modules", which runs the model itself'
    )


def shown(value: object) -> str:
    """A short text for an argument; `Parameter.empty` is an argument that was not given."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with the keys {', '.join(map(repr, value)) or '(none)'}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    if value is Parameter.empty:
        return "not given"
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def same_value(value: Any, captured: Any) -> bool:
    """Whether an argument that is no tensor has the captured value; NaN is the same as NaN."""
    if value is captured or isinstance(value, Tensor):
        return value is captured
    try:
        return bool(value == captured) or (value != value and captured != captured)
    except (TypeError, ValueError, RuntimeError):  # an array compares by element
        return False
