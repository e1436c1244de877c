"""`transform` and `plan`: check the arguments, and call the compiler."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from dni_fx.arguments import check_arguments
from dni_fx.capture import Recapture, StateOption
from dni_fx.compiler import rewrite
from dni_fx.cuts import Cuts, Limits
from dni_fx.errors import DniFxError, described
from dni_fx.model import Inputs, probe, to_inputs
from dni_fx.partition import checked_objective
from dni_fx.planning import Request, capture_and_plan
from dni_fx.plans import Plan
from dni_fx.runtime import (
    NOT_COMPILED,
    DecoupledModule,
    OptimizerFactory,
    SegmentOptimizer,
    attach_synthesizers,
    check_source,
    check_stepping,
)
from dni_fx.settings import DEFAULTS, Loss, Mix, Settings, Training, check_horizon, check_scaler
from dni_fx.synthesizers import Factory
from dni_fx.units import parse_bytes

__all__ = ["example_inputs_of", "plan", "transform"]


def transform(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    cuts: Cuts = "auto",
    synthesizer: str | Factory = "auto",
    unlock: str = "backward",
    inside: str = "keep",
    mix: Mix = 0.0,
    classes: int | None = None,
    context_size: int | None = None,
    loss: str | Loss | None = None,
    context_from: str | None = None,
    training: Training = DEFAULTS.training,
    optimizer: torch.optim.Optimizer | OptimizerFactory | None = None,
    step: str = "loop",
    accumulate: int | None = None,
    scaler: torch.amp.GradScaler | None = None,
    compile: bool | Mapping[str, Any] = False,
    objective: str = "memory",
    memory_budget: str | int | None = None,
    synthesizer_share: float | None = None,
    speeds: Sequence[float] | None = None,
    profile: bool = False,
    frontend: str = "auto",
    verify: bool = True,
    state: StateOption | None = None,
) -> DecoupledModule:
    """Cut a model into segments that train on synthetic gradients (Jaderberg et al. 2017).

    The result shares the model's parameters, and has the same state_dict keys. The synthesizers are under `net.dni`.

    Args:
        model: Any module that can be trained.
        example_inputs: One tensor, or a tuple of positional arguments, with the batch as the first axis. None: the
            model is run on shapes that fit its first layers, until one works.
        example_kwargs: Keyword arguments of the example call. None: no keyword arguments.
        cuts: "auto": the cuts are chosen by `objective`; none, with a warning, where they are predicted to save less
            than 5 % of memory and of time (with `state`: no cuts in depth). A number: so many segments, chosen in the
            same way, even if they save nothing. A list of names: after these modules or nodes. "every:Block": after
            each call of the class `Block`. "leaves": after each layer with trainable parameters except the last.
            "marked": after each `with dni_fx.cut_after():` block in the model's code. A `Plan`: its cuts.
        synthesizer: A name in `dni_fx.synthesizers.REGISTRY`, with options as in "mlp(hidden_layers=2)". Or a function
            `(activation, context_size)` that returns a module, such as a subclass of `dni_fx.Synthesizer`. "auto": with
            a loss an `exit`; else chosen by the shape of the activation and, for maps at chosen cuts, by
            `synthesizer_share`; at a cut in time `least_squares`, or `mlp` for
            float16, bfloat16 or more than 2,048 features.
        unlock: "backward": each segment runs its backward pass right after its forward pass, which frees its
            activations. "none": the whole net is one ordinary autograd graph, which torch.compile and
            DistributedDataParallel take.
        inside: "keep": autograd keeps the activations of a segment until its backward pass. "checkpoint": each segment
            computes them again in its backward pass, piece by piece, which gives the same gradients; with a memory
            budget, only as many segments as have to. Needs a graph; excludes `compile`.
        mix: The share of the true gradient in the gradient that is sent upstream, 0 to 1 (BP(lambda)). A tuple
            `(start, end, steps)` changes the share linearly over so many steps. More than 0 needs `unlock="none"`.
        classes: The number of classes, to condition the synthesizers on labels: call `net(x, dni_context=labels)` in
            training. None: no labels.
        context_size: The number of entries of a vector for each sample, to condition the synthesizers on that vector
            instead of labels. None: no vector.
        loss: The training loss, a function `(outputs, target)` of the model's outputs, or the name of one in
            `torch.nn.functional`: for exits, and for other synthesizers that differentiate it. In training, call
            `net(x, dni_context=target)`. None: none is known; a model that returns its own loss needs none.
        context_from: The argument of the model, or the key of an argument that is a dict, that holds the labels or the
            target, as in `context_from="labels"`: for calls without `dni_context`. None: each call gives it.
        training: How the synthesizers are trained; see `dni_fx.Training`.
        optimizer: The optimizer of the model, to which the synthesizers' parameters are added. With step="segment": a
            function that makes an optimizer from parameters, such as `torch.optim.Adam`. None: the training loop trains
            `net.parameters()`, which include the synthesizers' parameters.
        step: "loop": the training loop calls the optimizer's `step()`. "segment": each segment has its own optimizer,
            which steps right after the segment's backward pass and frees the gradients. `net.dni.optimizer`, a
            `SegmentOptimizer`, holds these optimizers.
        accumulate: The number k of batches whose gradients the training loop accumulates, if it divides each loss by k,
            as trainers do: predictions are then divided by k, too. With step="segment" the segments step at every k-th
            pass. 1: the loop adds whole losses. None: the loop does not accumulate; if it does,
            the optimizer raises an error when it steps.
        scaler: The `GradScaler` that scales the loss in float16 training; predictions are scaled alike. None: the loss
            is not scaled.
        compile: True: compile the net with `torch.compile`. With unlock="backward" each segment is compiled by itself
            (with the front end "modules", whose cuts are hooks, only parts of segments); with unlock="none" the net is
            one graph. Of a model that is cut in time, the part between the cuts is compiled. A dict has arguments for
            `torch.compile`, as in `{"backend": "aot_eager"}`. False: the net is not compiled.
        objective: What chosen cuts (`cuts="auto"` or a number) minimize, as predicted for `unlock="backward"` and Adam,
            with a charge for each synthesizer. "memory": the peak memory of a training step. "throughput": the time of
            the slowest segment and its synthesizers, if each segment has its own device.
        memory_budget: The largest predicted peak memory, with parameters and Adam's state: a number of bytes, or a text
            such as "2GiB". The cuts are the fewest found that fit, or with inside="checkpoint" the plan with the least
            time; a number as `cuts` is then the most segments. None: no limit.
        synthesizer_share: The largest share of the time of a step of backpropagation that all synthesizers together
            may take. None: no limit with a memory budget; else 0.05, or 1.5 times the smallest possible share if
            no cuts are so cheap; exits: 0.15, from four segments on 0.3, and 0.15 and 0.2 for units.
        speeds: With objective="throughput" and a number as `cuts`: the speed of the machine of each segment beside the
            others, as in (1, 0.5). None: all are alike.
        profile: True: measure the times of the nodes on real tensors. False: count FLOPs.
        frontend: How the model is captured. "fx": symbolic tracing that keeps layers whole. "export": torch.export; in
            eval mode the original model runs. "modules": no graph; cuts are at the outputs of submodules. "auto": the
            first of these whose capture is the same network.
        verify: True: compare every capture with the eager model: outputs, gradients, buffers, eval mode and other batch
            sizes. False: skip the comparison, which saves its time and memory.
        state: Cut a recurrent model in time, between one call and the next. A dict: for each argument that is state, by
            name, the position or key of the output that holds its next value. True: forward takes `(x, state)` and
            returns `(y, state)`. None: no cut in time. See `dni_fx.runtime.time_cut`.

    Raises:
        DniFxError: If an argument is wrong; the message says what to do.
        CaptureError: If no front end captures the same network.
        NoLegalCutError: If there is no place to cut.
    """
    check_arguments({"step": step, "accumulate": accumulate, "compile": compile})
    settings = Settings(unlock, mix, classes, context_size, loss, training, context_from)
    _check_step(step, optimizer, training)
    if scaler is not None:
        check_scaler(scaler, training, step)
    if compile is not False:
        check_horizon(training, "compile")
        if inside == "checkpoint":
            raise DniFxError(NOT_COMPILED)
    limits = limits_of(objective, memory_budget, synthesizer_share, speeds)
    request = Request(cuts, synthesizer, settings, limits, profile, frontend, verify, state, inside)
    example = example_inputs_of(model, example_inputs, example_kwargs)
    if context_from is not None:
        settings = replace(
            settings, context_from=check_source(context_from, model.forward, example.args, example.kwargs)
        )
    module, found = capture_and_plan(model, example, request)
    if cuts == "auto" and not found.cuts and not found.states:
        warnings.warn(f"the net has no cuts: {found.why}", stacklevel=2)
    again = Recapture.of(module, example, found.frontend)
    net = rewrite(module, found, synthesizer, settings)
    net.dni_captured = replace(net.dni_captured, again=again)
    if step == "segment":
        assert callable(optimizer)  # `_check_step` raises an error otherwise
        SegmentOptimizer(net, optimizer, training=training, accumulate=accumulate, scaler=scaler)
    elif scaler is not None or accumulate is not None:
        net.dni.scale_with(scaler, accumulate=accumulate)
    if isinstance(optimizer, torch.optim.Optimizer):
        attach_synthesizers(optimizer, net.dni, training)
    if compile is not False:
        net.compile(**({} if compile is True else compile))
    return net


def _check_step(step: str, optimizer: object, training: Training) -> None:
    if step == "segment":
        check_stepping(optimizer)
        return
    if optimizer is None and training.needs_optimizer:
        raise DniFxError("training with lr or optimizer needs optimizer=, the optimizer of the model")
    if not (optimizer is None or isinstance(optimizer, torch.optim.Optimizer)):
        raise DniFxError(
            f"optimizer={described(optimizer)}: give the optimizer of the model; a function that makes one needs "
            "step='segment'"
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise DniFxError("LBFGS takes no further parameters: transform without optimizer=, and train net.parameters()")


def plan(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    cuts: Cuts = "auto",
    synthesizer: str | Factory = "auto",
    inside: str = "keep",
    classes: int | None = None,
    context_size: int | None = None,
    loss: str | Loss | None = None,
    objective: str = "memory",
    memory_budget: str | int | None = None,
    synthesizer_share: float | None = None,
    speeds: Sequence[float] | None = None,
    profile: bool = False,
    frontend: str = "auto",
    verify: bool = True,
    state: StateOption | None = None,
) -> Plan:
    """Decide where `transform` would cut, and build nothing.

    The arguments and errors are the same as for `transform`.
    """
    settings = Settings(classes=classes, context_size=context_size, loss=loss)
    limits = limits_of(objective, memory_budget, synthesizer_share, speeds)
    request = Request(cuts, synthesizer, settings, limits, profile, frontend, verify, state, inside)
    return capture_and_plan(model, example_inputs_of(model, example_inputs, example_kwargs), request)[1]


def limits_of(
    objective: str,
    memory_budget: str | int | None,
    synthesizer_share: float | None,
    speeds: Sequence[float] | None = None,
) -> Limits:
    """Check the arguments of `transform` that limit the search for cuts."""
    check_arguments({"objective": objective, "memory_budget": memory_budget, "synthesizer_share": synthesizer_share})
    check_arguments({"speeds": speeds})
    budget = None if memory_budget is None else parse_bytes(memory_budget)
    return Limits(checked_objective(objective), synthesizer_share, budget, None if speeds is None else tuple(speeds))


def example_inputs_of(model: nn.Module, example_inputs: Any, example_kwargs: Mapping[str, Any] | None) -> Inputs:
    """The example inputs that the user gives, or else inputs found by trial.

    Raises:
        DniFxError: If the model is no module or has uninitialized parameters, or no inputs were found.
    """
    if not isinstance(model, nn.Module):
        raise DniFxError(f"model={described(model)}: expected an nn.Module")
    lazy = [n for n, p in model.named_parameters() if isinstance(p, nn.parameter.UninitializedParameter)]
    if lazy:
        raise DniFxError(f"parameter {lazy[0]!r} has no shape yet: call the model once before rewriting it")
    if example_inputs is None and example_kwargs is None:
        return probe(model)
    return to_inputs(example_inputs, example_kwargs)
