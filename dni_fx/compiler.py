"""The compiler: rewrite a captured model by a plan, and restore the plain model."""

from dataclasses import replace

import torch
from torch import nn

from dni_fx.cost import check_exits, with_exits
from dni_fx.errors import DniFxError
from dni_fx.graph import dataflow
from dni_fx.passes.apply import run
from dni_fx.passes.pipeline import passes_of
from dni_fx.planning import exit_planner, has_labels_for_positions
from dni_fx.plans import Plan, Rewrite, crossings, run_twice
from dni_fx.runtime import (
    DecoupledModule,
    SegmentOptimizer,
    add_time_cuts,
    build_dni,
    not_rewritten,
    plain,
    prepare_training,
)
from dni_fx.settings import DEFAULTS, Settings, with_defaults
from dni_fx.synthesizers import Factory, exit_names, exit_options, factories, paths_of

__all__ = ["restore", "rewrite"]


def rewrite(
    module: DecoupledModule, plan: Plan, synthesizer: str | Factory = "auto", settings: Settings = DEFAULTS
) -> DecoupledModule:
    """Put the synthesizers of `plan` into a captured, annotated module.

    The arguments and errors are the same as for `dni_fx.transform`.
    """
    if plan.states:
        _check_time_cuts(settings, plan)
    options = exit_options(synthesizer)
    if options is not None:
        check_exits(in_time=bool(plan.states))
        flow = dataflow(module.graph)
        plan = with_exits(plan, flow, exit_planner(module, flow, options, settings))
    elif synthesizer != "auto":
        plan = replace(plan, cuts=tuple(replace(cut, exit=None) for cut in plan.cuts))
    if settings.unlock != "backward" or settings.training.warmup or isinstance(settings.mix, tuple):
        plan = replace(plan, cuts=tuple(map(run_twice, plan.cuts)))  # true gradients go through the cut
    chosen = {name: synthesizer for name, _ in crossings(plan)} | exit_names(plan)
    dense = has_labels_for_positions(module, settings)
    names, makers = factories(plan, chosen, settings.loss, dense=dense)
    named = isinstance(synthesizer, str)
    paths = paths_of(synthesizer, names.values())
    rewritten = replace(plan, rewrite=Rewrite.of(settings, names, named, paths))
    if not plan.states and settings.training.for_time:
        raise DniFxError("discount, centered, horizon and auxiliary are for a cut in time: give state=")
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):  # synthesizers draw their first weights
        dni = build_dni(rewritten, makers, with_defaults(settings, named=named), device=device)
        add_time_cuts(dni, makers, with_defaults(settings, named=named, in_time=True), device=device)
    module.add_module("dni", dni)
    dni.train(module.training)
    run(module, passes_of(rewritten, runs_graph=module.dni_runs_graph))
    prepare_training(module, settings.loss)
    return module


def _check_time_cuts(settings: Settings, plan: Plan) -> None:
    """Raise a DniFxError if the settings do not allow the plan's cuts in time."""
    in_depth = {
        "classes=": settings.classes,
        "context_size=": settings.context_size,
        "training.warmup": settings.training.warmup,
    }
    given = [name for name, value in in_depth.items() if value]
    if not plan.cuts and given:
        raise DniFxError(f"{given[0]} is for cuts in depth: give cuts=, too")
    if not plan.cuts and settings.training.scale == "rms":
        raise DniFxError(
            'scale="rms" is for cuts in depth: in time, targets contain predictions, which would set the scale'
        )
    elsewhere = [state for state in plan.states if state.enters != (state.leaves,)]
    if elsewhere and settings.training.auxiliary and settings.unlock == "backward":
        raise DniFxError(
            f"auxiliary needs a state that leaves the segment it enters, but {elsewhere[0].tensors[0].input} leaves "
            'another: cut elsewhere, or use unlock="none"'
        )
    several = [state for state in plan.states if len(state.enters) > 1]
    if several and settings.unlock == "backward":
        names = ", ".join(tensor.input for tensor in several[0].tensors)
        raise DniFxError(
            f"state {names} is used in segments {', '.join(map(str, several[0].enters))}, which go backward one by "
            'one: cut elsewhere, or use unlock="none"'
        )


def restore(net: DecoupledModule) -> nn.Module:
    """The plain model with the trained weights.

    Returns:
        The model itself that was passed to `transform`, which shares its parameters with `net`. If `net` comes from
        `dni_fx.load` without a model: a module with the graph as it was before the rewrite.

    Raises:
        DniFxError: If `net` was not made by dni-fx.
    """
    if not isinstance(net, DecoupledModule):
        raise not_rewritten(net)
    dni = getattr(net, "dni", None)
    if dni is not None and isinstance(dni.optimizer, SegmentOptimizer):
        dni.optimizer.remove()
    return plain(net) if net.dni_captured.original is None else net.dni_share_with_original()
