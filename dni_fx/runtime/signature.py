"""The signature of a rewritten net's forward: the model's own, with `dni_context`.

Trainers read it to find out which columns of a data set a model takes, and what its labels are called.
"""

import inspect
import types
from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["set_signature", "takes_any_keyword"]

_CONTEXT = "dni_context"


def set_signature(cls: type[nn.Module], forward: Callable[..., Any], model: nn.Module | None, *, context: bool) -> None:
    """Let a class have a forward with the signature of a model's.

    Args:
        forward: A plain function; the class gets a copy, since other classes have the same function.
        model: None: the function keeps its own signature.
        context: The net takes `dni_context`.
    """
    made: Any = types.FunctionType(
        forward.__code__, forward.__globals__, forward.__name__, forward.__defaults__, forward.__closure__
    )
    made.__kwdefaults__, made.__doc__ = forward.__kwdefaults__, forward.__doc__
    if model is not None:
        made.__signature__ = _signature(model, context=context)
    cls.forward = made


def takes_any_keyword(forward: Callable[..., Any]) -> bool:
    """Whether a function has **kwargs."""
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(forward).parameters.values())


def _signature(model: nn.Module, *, context: bool) -> inspect.Signature:
    parameters = list(inspect.signature(model.forward).parameters.values())
    if context:
        last = [p for p in parameters if p.kind is p.VAR_KEYWORD]
        added = inspect.Parameter(_CONTEXT, inspect.Parameter.KEYWORD_ONLY, default=None)
        parameters = [*parameters[: len(parameters) - len(last)], added, *last]
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    return inspect.Signature([own, *parameters], __validate_parameters__=False)  # one may be called `self`, too
