"""Capture a model by a front end: the named one, or the first of fx, export, modules that gives the same network."""

import inspect
import logging
from typing import NamedTuple

import torch
from torch import nn

from dni_fx.arguments import FRONTENDS
from dni_fx.capture.adapters import keep_adapters_whole
from dni_fx.capture.annotate import annotate
from dni_fx.capture.axes import find_axes
from dni_fx.capture.by_export import capture_by_export
from dni_fx.capture.by_fx import capture_by_fx
from dni_fx.capture.by_modules import capture_by_modules
from dni_fx.capture.checkpoints import warn_of_lost_checkpoints
from dni_fx.capture.eager import Eager
from dni_fx.capture.verify import verify
from dni_fx.errors import CaptureError, DniFxError, NoLegalCutError, first_line
from dni_fx.graph import dataflow, record_of
from dni_fx.model import REGISTERED, Inputs, preserved
from dni_fx.partition import find_positions
from dni_fx.passes.unbind_unpacked import UnbindUnpacked
from dni_fx.passes.unpack_tuples import UnpackTuples
from dni_fx.progress import announce
from dni_fx.runtime import DecoupledModule

__all__ = ["Capture", "capture", "check_frontend"]

_log = logging.getLogger(__name__)

_MANY_LAYERS = 8  # the least layers in a module that fx keeps whole for which another front end is tried

# The share of the time of a capture before each front end begins: rough figures, of GPT-2.
_SHARES = {"fx": 0.2, "export": 0.25, "modules": 0.7}


def check_frontend(frontend: str) -> None:
    if frontend not in ("auto", *FRONTENDS):
        raise DniFxError(f"frontend={frontend!r}: there are auto, {', '.join(FRONTENDS)}")


class Capture(NamedTuple):
    """A captured, annotated model."""

    module: DecoupledModule
    frontend: str
    tried: tuple[str, ...]  # the front ends that were rejected, each with the reason


def capture(
    model: nn.Module, inputs: Inputs, frontend: str = "auto", *, compare: bool = True, in_depth: bool = True
) -> Capture:
    """Capture and annotate a model.

    Args:
        frontend: The name of a front end, or "auto": the first whose capture is the same network.
        compare: Compare each capture with the eager model.
        in_depth: The model is to be cut between its layers, not in time alone.

    Raises:
        DniFxError: If the inputs do not fit.
        CaptureError: If no front end captures the model; the message has the reason of each.
        NoLegalCutError: If `frontend` is "modules", and no submodule ends at a place that can be cut.
    """
    check_frontend(frontend)
    with preserved(model):  # which keeps one copy of the state for all runs
        _check_model(model, inputs)
        announce("running the model", 0)
        eager = Eager(model, inputs) if compare else None
        if frontend == "auto":
            found = _first_right(model, inputs, eager, in_depth=in_depth)
            for line in found.tried:
                _log.info("front end refused: %s", line)
        else:
            announce(f"front end {frontend}", _SHARES[frontend])
            found = Capture(_annotated(frontend, model, inputs, eager, in_depth=in_depth), frontend, ())
            _verify(found.module, eager)
        warn_of_lost_checkpoints(found.module)
        announce("looking for the axes of the batch", 0.95)
        find_axes(found.module, inputs)
    return found


def _first_right(model: nn.Module, inputs: Inputs, eager: Eager | None, *, in_depth: bool) -> Capture:
    """The capture by the first front end that gives the same network with enough places to cut.

    If no capture has enough places, the first that is the same network. A graph without a legal cut is compared with
    the model only then, since the comparison takes most of the time.
    """
    rejected: dict[str, str] = {}
    fallbacks: list[Capture] = []
    for name in FRONTENDS:
        if name == "modules" and any(not _why_uncuttable(found.module) for found in fallbacks):
            break  # a graph with few places to cut is better than no graph
        announce(f"front end {name}", _SHARES[name])
        try:
            net = _annotated(name, model, inputs, eager, in_depth=in_depth)
            reason = _why_uncuttable(net) if in_depth else ""
            if not reason:
                _verify(net, eager)
                reason = _why_too_coarse(net) if in_depth and name == "fx" else ""
        except (CaptureError, NoLegalCutError) as error:
            rejected[name] = str(error)
            continue
        if not reason:
            return Capture(net, name, _lines(rejected))
        rejected[name] = reason
        fallbacks.append(Capture(net, name, ()))
    for found in fallbacks:
        try:
            if _why_uncuttable(found.module):
                _verify(found.module, eager)
        except CaptureError as error:
            rejected[found.frontend] = str(error)
            continue
        del rejected[found.frontend]
        return found._replace(tried=_lines(rejected))
    raise CaptureError("no front end takes it. " + " / ".join(_lines(rejected)))


def _lines(rejected: dict[str, str]) -> tuple[str, ...]:
    return tuple(f"{name}: {reason}" for name, reason in rejected.items())


def _check_model(model: nn.Module, inputs: Inputs) -> None:
    _check_names(model, inputs)
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError("a ScriptModule holds no Python code to cut: give the model that it was made from")
    if any("train" in vars(m) or type(m).train is not nn.Module.train for m in model.modules()):
        try:
            with preserved(model):
                model.train(model.training)
        except NotImplementedError:
            raise CaptureError("an exported program has no train mode: give the model that it was made from") from None
    try:
        inspect.signature(model.forward).bind(*inputs.args, **inputs.kwargs)
    except TypeError as error:
        raise DniFxError(f"the example inputs do not fit {type(model).__name__}.forward: {error}") from None


def _check_names(model: nn.Module, inputs: Inputs) -> None:
    """Raise a CaptureError if the model has a name that a rewritten net needs itself."""
    if isinstance(model, DecoupledModule):
        if hasattr(model, "dni"):
            raise CaptureError("the model has an attribute `dni`: it was rewritten before; use dni_fx.restore(net)")
        return
    names = {*vars(model), *(name for kind in REGISTERED for name in getattr(model, kind).keys())}  # noqa: SIM118  # a ScriptModule has no dicts
    taken = sorted(n for n in names if n == "dni" or (n.startswith("dni_") and hasattr(DecoupledModule, n)))
    if taken:
        raise CaptureError(f"the model has an attribute `{taken[0]}`, a name that a rewrite needs itself: rename it")
    if "dni_context" in {*inspect.signature(model.forward).parameters, *inputs.kwargs}:
        raise CaptureError("forward takes an argument 'dni_context', as the rewritten net takes labels: rename it")


def _annotated(name: str, model: nn.Module, inputs: Inputs, eager: Eager | None, *, in_depth: bool) -> DecoupledModule:
    """The capture by a front end, annotated; of a graph, it is not known yet whether it is the same network."""
    try:
        net = _captured(name, model, inputs, eager)
    except DniFxError:
        raise
    except Exception as error:  # torch.fx and torch.export raise errors of any type on code that they cannot capture
        raise CaptureError(f"{type(error).__name__}: {first_line(error)}") from error
    if name != "modules":  # which has annotated its record
        try:
            _annotate_and_unpack(net, inputs)
        except Exception:
            _verify(net, eager)  # that the graph is wrong is the better reason
            raise
    keep_adapters_whole(net)
    if name == "modules" and in_depth and _why_uncuttable(net):
        raise NoLegalCutError(_why_no_cut(net))
    return net


def _verify(net: DecoupledModule, eager: Eager | None) -> None:
    if eager is not None and net.dni_runs_graph:
        announce("comparing the capture with the model", 0.45)
        verify(eager, net)


def _captured(name: str, model: nn.Module, inputs: Inputs, eager: Eager | None) -> DecoupledModule:
    if name == "modules":
        return capture_by_modules(model, inputs)
    whole = {} if eager is None else eager.whole
    if eager is not None and eager.no_graph:
        raise CaptureError(f"{eager.no_graph}; frontend='modules' makes no graph")
    if name == "fx":
        return capture_by_fx(model, inputs, whole)
    if whole:
        raise CaptureError(f"{next(iter(whole.values()))}, which torch.export does not repeat")
    return capture_by_export(model, inputs)


def _why_no_cut(net: DecoupledModule) -> str:
    """The reason why the front end modules finds no legal cut, and the remedy."""
    within = next((o for n in net.graph.nodes if "differentiates" in (o := record_of(n).obstacle)), "")
    if within:
        return f"no submodule ends at a place that can be cut: {within}, and a cut there changes the result"
    return (
        "no submodule ends where its outputs are the only values that carry gradient on: give a part of forward, "
        "such as a block with its skip connection, a module of its own"
    )


def _annotate_and_unpack(net: DecoupledModule, inputs: Inputs) -> None:
    annotate(net, inputs)
    results = [unpack(net) for unpack in (UnpackTuples(), UnbindUnpacked())]
    if any(result is not None and result.modified for result in results):
        annotate(net, inputs)


def _why_uncuttable(net: DecoupledModule) -> str:
    """The reason why the graph cannot be cut; empty if it can."""
    legal = any(not position.obstacle for position in find_positions(dataflow(net.graph)))
    return "" if legal else "its graph has no legal cut"


def _why_too_coarse(net: DecoupledModule) -> str:
    """The module that a trace kept whole, if it holds at least half of the model's layers; else empty."""
    total = _layers(net)
    for name in dict.fromkeys(str(node.target) for node in net.graph.nodes if node.op == "call_module"):
        inside = _layers(net.get_submodule(name))
        if inside >= _MANY_LAYERS and 2 * inside > total:
            return f"it keeps {name!r} whole, which holds {inside} of {total} layers"
    return ""


def _layers(module: nn.Module) -> int:
    """The number of modules that have a weight matrix of their own."""
    return sum(any(p.dim() > 1 for p in m.parameters(recurse=False)) for m in module.modules())
