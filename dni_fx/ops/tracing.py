"""Tracers in train mode: no graph of theirs holds a training step of a rewritten net."""

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from dni_fx.errors import DniFxError

__all__ = ["TRACED", "check_not_symbolic", "check_not_traced"]

TRACED = (
    "a training step of a rewritten net runs backward passes and counts steps, which no torch.jit.trace, "
    "torch.jit.script, torch.export, make_fx or symbolic_trace holds: call net.eval() first, or trace "
    "dni_fx.restore(net), the plain model"
)


def check_not_traced(value: object, *, allows_export: bool = False) -> None:
    """Raise a DniFxError if a tracer runs the code that calls this.

    Args:
        value: An argument of this code.
        allows_export: torch.export may be the tracer.
    """
    if torch.compiler.is_dynamo_compiling():
        return
    if isinstance(value, fx.Proxy) or torch.jit.is_tracing():  # type: ignore[no-untyped-call, attr-defined]
        raise DniFxError(TRACED)
    if get_proxy_mode() is not None and not (allows_export and torch.compiler.is_exporting()):
        raise DniFxError(TRACED)


def check_not_symbolic(args: object) -> None:
    """Raise a DniFxError if torch.fx traces a forward that takes any arguments.

    Args:
        args: The arguments by position: torch.fx gives a Proxy in place of the tuple.
    """
    if isinstance(args, fx.Proxy):
        raise DniFxError(
            'symbolic_trace finds no graph in a net of the front end "export" or "modules": trace '
            "dni_fx.restore(net), the plain model"
        )
