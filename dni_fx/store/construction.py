"""Constructor calls that make layers of torch.nn again."""

import ast
import inspect
import logging
from typing import Any

import torch
from torch import nn

from dni_fx.errors import first_line

__all__ = ["CONTAINERS", "OWN", "construction", "literal"]

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

OWN = set(nn.Module().__dict__)  # attributes of every module

_log = logging.getLogger(__name__)


def construction(module: nn.Module) -> str | None:
    """A constructor call that makes a layer of torch.nn with the same settings and shapes; None if there is none."""
    cls = type(module)
    if not cls.__module__.startswith("torch.nn.") or isinstance(module, CONTAINERS) or cls is nn.Module:
        return None
    arguments = []
    for name, parameter in _parameters_of(cls).items():
        if name in ("device", "dtype", "mode") or not hasattr(module, name):
            continue
        value = getattr(module, name)
        value = value is not None if name == "bias" and not isinstance(value, bool) else value
        if parameter.default is inspect.Parameter.empty or value != parameter.default:
            if literal(value) is None:
                return None
            arguments.append(f"{name}={literal(value)}")
    call = f"torch.nn.{cls.__name__}({', '.join(arguments)})"
    return call if getattr(nn, cls.__name__, None) is cls and _makes(call, module) else None


def _parameters_of(cls: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """The parameters of a constructor."""
    parameters = dict(inspect.signature(cls).parameters)
    if issubclass(cls, nn.RNNBase):  # LSTM(*args, **kwargs) passes them to its base
        tanh = inspect.Parameter("nonlinearity", inspect.Parameter.KEYWORD_ONLY, default="tanh")
        parameters = {**inspect.signature(nn.RNNBase).parameters, "nonlinearity": tanh}
    return parameters


def _makes(call: str, module: nn.Module) -> bool:
    """Whether the call makes a module with the same attributes and shapes."""
    try:
        with torch.device("meta"):
            made: nn.Module = eval(call, {"torch": torch})
    except (TypeError, ValueError, RuntimeError, AssertionError, AttributeError, LookupError) as error:
        _log.debug("%s is no constructor call of the layer: %s", call, first_line(error))
        return False

    def state(one: nn.Module) -> list[tuple[Any, ...]]:
        return [
            (
                {k: v for k, v in vars(m).items() if k not in OWN and not k.startswith("_flat_weight")},
                {k: v if v is None else v.shape for k, v in m._parameters.items()},
                {k: v if v is None else v.shape for k, v in m._buffers.items()},
            )
            for m in one.modules()
        ]

    return str(state(made)) == str(state(module))


def literal(value: Any) -> str | None:
    """Source for a plain value; None for any other value."""
    if isinstance(value, torch.dtype | torch.device):
        return f"torch.{value!r}".replace("torch.torch.", "torch.")
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if callable(value) and module in ("torch.nn.functional", "torch", "torch._C._nn", "torch._VariableFunctionsClass"):
        for home in ("torch.nn.functional", "torch"):
            if getattr(nn.functional if "." in home else torch, str(name).split(".")[-1], None) is value:
                return f"{home}.{str(name).split('.')[-1]}"
        return None
    try:
        text = repr(value)
        return text if ast.literal_eval(text) == value else None
    except (ValueError, SyntaxError):
        return None
