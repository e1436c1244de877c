"""The arguments of a graph that fx traced: their forms at the capture, and calls that the graph does not take."""

import inspect
from collections.abc import Container, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from dni_fx.model import Path, by_path, other_argument, shown

__all__ = ["Forms", "check_tensors", "form_error"]

Forms = Mapping[str, tuple[Path, ...] | None]  # `Captured.forms`


def check_tensors(forms: Forms, args: Sequence[Any], kwargs: Mapping[str, Any], states: Container[str] = ()) -> None:
    """Raise a TypeError if an argument that held tensors is None or not given: forward may branch on that.

    Args:
        states: Arguments that are cut off in time, which have an error of their own.
    """
    for index, (name, form) in enumerate(forms.items()):
        if form is not None and name not in states and (args[index] if index < len(args) else kwargs.get(name)) is None:
            given = index < len(args) or name in kwargs
            raise other_argument(name, _shown(form), None if given else inspect.Parameter.empty)


def form_error(
    forms: Forms, original: nn.Module | None, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> TypeError | None:
    """The error for a call that failed in the graph, if an argument has not its captured form; else None."""
    named = dict(zip(forms, args, strict=False)) | dict(kwargs)
    for name, value in named.items():
        form = forms.get(name)
        if form is None:
            continue
        paths = by_path(value)
        is_other = (
            value is None or type(value) in (str, bytes)
            if form == ((),) and () in paths
            else bool(set(form) - paths.keys())
        )
        if is_other:
            return other_argument(name, _shown(form), value)
    if forms and original is not None and len(args) + len(kwargs) > len(forms):
        try:
            bound = inspect.signature(original.forward).bind(*args, **kwargs).arguments
        except TypeError:
            return None  # the model does not take the call either
        extra = next((name for name in bound if name not in forms and not isinstance(bound[name], Tensor)), None)
        if extra is not None:
            return other_argument(extra, "not in the graph", bound[extra])
    return None


def _shown(form: tuple[Path, ...]) -> str:
    """The captured argument in words, from the paths of its leaves."""
    if form == ((),):
        return "a tensor"
    first = list(dict.fromkeys(path[0] for path in form))
    return shown(dict.fromkeys(first)) if isinstance(first[0], str) else f"a list or tuple of {len(first)}"
