"""Which front end takes a model: fx, export or modules, the first whose capture is the same network."""

import inspect
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from dni_fx.capture.annotate import annotate
from dni_fx.capture.by_export import capture_by_export
from dni_fx.capture.by_fx import capture_by_fx
from dni_fx.capture.by_modules import capture_by_modules
from dni_fx.capture.checkpoints import warn_of_lost_checkpoints
from dni_fx.capture.verify import runs, verify
from dni_fx.errors import CaptureError, DniFxError, NoLegalCutError, first_line
from dni_fx.graph import dataflow
from dni_fx.model import Inputs, preserved
from dni_fx.partition import find_positions
from dni_fx.passes.unbind_unpacked import UnbindUnpacked
from dni_fx.passes.unpack_tuples import UnpackTuples
from dni_fx.runtime import DecoupledModule

__all__ = ["FRONTENDS", "Capture", "capture", "check_frontend"]

FRONTENDS: dict[str, Callable[[nn.Module, Inputs], DecoupledModule]] = {
    "fx": capture_by_fx,
    "export": capture_by_export,
    "modules": capture_by_modules,
}

_MANY_LAYERS = 8  # from so many on, a module that is kept whole is worth another front end


def check_frontend(frontend: str) -> None:
    if frontend not in ("auto", *FRONTENDS):
        raise DniFxError(f"frontend={frontend!r}: there are auto, {', '.join(FRONTENDS)}")


class Capture(NamedTuple):
    """A captured, annotated model."""

    module: DecoupledModule
    frontend: str
    tried: tuple[str, ...]  # the front ends that were ruled out, and why


def capture(
    model: nn.Module, inputs: Inputs, frontend: str = "auto", *, compare: bool = True, in_depth: bool = True
) -> Capture:
    """Capture and annotate a model by the front end of that name; "auto": by the first that proves right.

    Args:
        compare: Run each capture beside the eager model.
        in_depth: It is to be cut between its layers, and not in time alone.

    Raises:
        DniFxError: If the inputs do not fit.
        CaptureError: If no front end takes the model, with what stood against each.
        NoLegalCutError: If the front end modules is asked for, and no submodule ends at a place that can be cut.
    """
    check_frontend(frontend)
    _check_model(model, inputs)
    chosen = _chosen(model, inputs, frontend, compare=compare, in_depth=in_depth)
    warn_of_lost_checkpoints(chosen.module)
    return chosen


def _chosen(model: nn.Module, inputs: Inputs, frontend: str, *, compare: bool, in_depth: bool) -> Capture:
    """The capture by that front end, or by the first that proves right."""
    never = runs(model, inputs) if compare else ""  # what stands against any graph
    if never and frontend in ("fx", "export"):
        raise CaptureError(f"{never}; the front end modules takes it")
    if frontend != "auto":
        return Capture(_captured(frontend, model, inputs, compare=compare, in_depth=in_depth), frontend, ())
    tried: dict[str, str] = {}
    second_best: Capture | None = None
    for name in FRONTENDS:
        if name == "modules" and second_best is not None and not _uncuttable(second_best.module):
            break  # a graph, though a coarse one, is worth more
        if never and name != "modules":
            tried[name] = never
            continue
        try:
            net = _captured(name, model, inputs, compare=compare, in_depth=in_depth)
        except (CaptureError, NoLegalCutError) as error:
            tried[name] = str(error)
            continue
        short = _uncuttable(net) or (_kept_whole(net) if name == "fx" else "")
        if not (in_depth and short):
            return Capture(net, name, _reasons(tried))
        tried[name] = short
        second_best = second_best or Capture(net, name, ())
    if second_best is not None:
        del tried[second_best.frontend]
        return second_best._replace(tried=_reasons(tried))
    raise CaptureError("no front end takes it. " + " / ".join(_reasons(tried)))


def _reasons(tried: dict[str, str]) -> tuple[str, ...]:
    return tuple(f"{name}: {reason}" for name, reason in tried.items())


def _check_model(model: nn.Module, inputs: Inputs) -> None:
    if hasattr(model, "dni"):
        raise CaptureError("the model has an attribute `dni` already: was it rewritten before? use dni_fx.restore(net)")
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError("a ScriptModule holds no Python code to cut: give the model that it was made from")
    try:
        with preserved(model):
            model.train(model.training)
    except NotImplementedError:
        raise CaptureError("an exported program has no train mode: give the model that it was made from") from None
    try:
        inspect.signature(model.forward).bind(*inputs.args, **inputs.kwargs)
    except TypeError as error:
        raise DniFxError(f"the example inputs do not fit {type(model).__name__}.forward: {error}") from None


def _captured(name: str, model: nn.Module, inputs: Inputs, *, compare: bool, in_depth: bool) -> DecoupledModule:
    try:
        net = FRONTENDS[name](model, inputs)
    except DniFxError:
        raise
    except Exception as error:
        raise CaptureError(f"{type(error).__name__}: {first_line(error)}") from error
    if name != "modules":  # which runs the model itself, and has recorded all there is to know
        if compare:
            verify(model, net, inputs)
        annotate(net, inputs)
        results = [one(net) for one in (UnpackTuples(), UnbindUnpacked())]
        if any(result is not None and result.modified for result in results):
            annotate(net, inputs)
            if compare:
                verify(model, net, inputs)
    elif in_depth and _uncuttable(net):
        raise NoLegalCutError(
            "no submodule ends where its outputs are all that carries gradient on: give a part of forward, such as a "
            "block with its skip connection, a module of its own"
        )
    return net


def _uncuttable(net: DecoupledModule) -> str:
    """Says so if there is no place to cut in the graph."""
    legal = any(not position.obstacle for position in find_positions(dataflow(net.graph)))
    return "" if legal else "its graph has no legal cut"


def _kept_whole(net: DecoupledModule) -> str:
    """Says which module a trace could not see into, where that holds more than half of the layers."""
    total = _layers(net)
    for name in dict.fromkeys(str(node.target) for node in net.graph.nodes if node.op == "call_module"):
        inside = _layers(net.get_submodule(name))
        if inside >= _MANY_LAYERS and 2 * inside > total:
            return f"it keeps {name!r} whole, which holds {inside} of {total} layers"
    return ""


def _layers(module: nn.Module) -> int:
    """Modules with a weight matrix of their own."""
    return sum(any(p.dim() > 1 for p in m.parameters(recurse=False)) for m in module.modules())
