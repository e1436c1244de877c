"""`transform` and `plan`: their arguments, checked, and handed to the compiler."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dni_fx.capture import StateOption
from dni_fx.compiler import Request, capture_and_plan, rewrite
from dni_fx.cuts import Cuts, Limits, check_limits
from dni_fx.errors import DniFxError
from dni_fx.model import Inputs, given, probe
from dni_fx.plans import Plan
from dni_fx.runtime import DecoupledModule, OptimizerFactory, SegmentOptimizer, attach_synthesizers, check_stepping
from dni_fx.settings import DEFAULTS, Loss, Mix, Settings, Training, check_horizon, check_scaler, check_settings
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
    mix: Mix = 0.0,
    classes: int | None = None,
    context_size: int | None = None,
    loss: str | Loss | None = None,
    training: Training = DEFAULTS.training,
    optimizer: torch.optim.Optimizer | OptimizerFactory | None = None,
    step: str = "loop",
    accumulate: int = 1,
    scaler: torch.amp.GradScaler | None = None,
    compile: bool | Mapping[str, Any] = False,
    objective: str = "memory",
    memory_budget: str | int | None = None,
    synthesizer_share: float | None = None,
    profile: bool = False,
    frontend: str = "auto",
    verify: bool = True,
    state: StateOption | None = None,
) -> DecoupledModule:
    """Cut a model into segments that train on synthetic gradients (Jaderberg et al. 2017).

    The result shares the model's parameters and has its state_dict keys; what is new lives under `net.dni`.

    Args:
        model: Any module that trains.
        example_inputs: A tensor or a tuple of positional arguments, batch first; None: shapes are tried until one
            fits.
        example_kwargs: Keyword arguments of the example call.
        cuts: "auto"; a number of segments; names of modules or nodes to cut after; "every:Block", after each call of
            that class; "leaves", after each layer that trains, but the last; "marked", where the code says
            `with dni_fx.cut_after():`; or a `Plan`.
        synthesizer: A name in `dni_fx.synthesizers.REGISTRY`, with options as in "mlp(hidden_layers=2)"; "auto"; or a
            function `(activation, context_size)` that makes a module, such as a subclass of `dni_fx.Synthesizer`.
        unlock: "backward": every segment runs its backward pass as soon as it has run forward, which frees its
            activations; "none": one ordinary autograd graph, which torch.compile and DistributedDataParallel take.
        mix: Share of the true gradient handed upstream, 0 to 1 (BP(lambda)), or `(start, end, steps)`, along a line;
            needs `unlock="none"`.
        classes: Condition the synthesizers on labels: call `net(x, dni_context=labels)` while training.
        context_size: Condition them on any vector of so many entries a sample instead.
        loss: The training loss, a function of (outputs, labels) that gives the mean over the rows, or its name in
            `torch.nn.functional`: for the synthesizers that differentiate a loss.
        training: How the synthesizers are trained.
        optimizer: One that the person has already: the synthesizers' parameters are added to it. With step="segment":
            a function that makes one from parameters, such as `torch.optim.Adam`.
        step: "loop": the optimizer steps in the training loop; "segment": every segment has one of its own, which steps
            as soon as the segment has gone backward, and frees its gradients (`net.dni.optimizer`, a
            `SegmentOptimizer`, is all of them).
        accumulate: With step="segment": step at every such pass only.
        scaler: The GradScaler that scales the loss, for float16: predictions follow its scale.
        compile: Let torch.compile have it: each segment by itself with unlock="backward" (with the front end
            "modules", whose cuts are hooks, only parts of them), else one graph; of a model that is cut in time, what
            is between its ends. Or what `torch.compile` is to be called with, as in `{"backend": "aot_eager"}`.
        objective: What cuts that are chosen ("auto", or a number of segments) make least, with a charge for each
            synthesizer, as predicted for `unlock="backward"` and Adam. "memory": the peak of a
            training step; "throughput": the time of the slowest segment with its synthesizers, where each has a device
            of its own; "balanced": the time of the heaviest segment alone.
        memory_budget: The fewest segments found whose predicted peak, with parameters and Adam's state, fits: bytes, or
            "2GiB". A number of segments is then the most.
        synthesizer_share: Of the time of backprop's step, what all the synthesizers may take; None: 0.05, or half
            as much again as the least that there is, where nothing is so cheap; no limit with a memory budget.
        profile: Measure the times of the nodes on real tensors, in place of counting FLOPs.
        frontend: What captures the model. "fx": symbolic tracing that keeps layers whole; "export": torch.export, with
            the original running in eval mode; "modules": no graph, cuts at the outputs of submodules; "auto": the
            first of these that proves to be the same network.
        verify: Compare every capture with the eager model: outputs, gradients, buffers, eval mode, other batch sizes.
            False saves that time and memory, and trusts the capture.
        state: Cut a recurrent model in time, where its state goes from one call to the next: outputs, by place or key,
            by the name of the argument that each becomes; True: for a forward `(x, state)` that returns `(y, state)`.
            Then "auto" makes no cuts in depth, and a synthesizer that is "auto" is `least_squares` there, or `mlp` for
            float16, bfloat16, or more than 2,048 features. See `dni_fx.runtime.time_cut`.

    Raises:
        DniFxError: If an argument is wrong, with what to do.
        CaptureError: If no front end captures the same network.
        NoLegalCutError: If there is no place to cut.
    """
    settings = Settings(unlock, mix, classes, context_size, loss, training)
    check_settings(settings)
    _check_step(step, optimizer, accumulate, training)
    if scaler is not None:
        check_scaler(scaler, training, step)
    if not isinstance(compile, bool | Mapping):
        raise DniFxError(f"compile={compile!r}: True, or a dict of what torch.compile is to be called with")
    if compile is not False:
        check_horizon(training, "compile")
    limits = limits_of(objective, memory_budget, synthesizer_share)
    request = Request(cuts, synthesizer, settings, limits, profile, frontend, verify, state)
    module, found = capture_and_plan(model, example_inputs_of(model, example_inputs, example_kwargs), request)
    if mix and not found.cuts:
        raise DniFxError("mix is for cuts in depth: say cuts=")
    net = rewrite(module, found, synthesizer, settings)
    if scaler is not None:
        net.dni.scale_with(scaler)
    if step == "segment":
        SegmentOptimizer(net, optimizer, training=training, accumulate=accumulate, scaler=scaler)  # type: ignore[arg-type]
    elif isinstance(optimizer, torch.optim.Optimizer):
        attach_synthesizers(optimizer, net.dni, training)
    if compile is not False:
        net.compile(**({} if compile is True else compile))
    return net


def _check_step(step: str, optimizer: object, accumulate: int, training: Training) -> None:
    if step == "segment":
        check_stepping(optimizer, accumulate)
        return
    if step != "loop":
        raise DniFxError(f"step={step!r}: there are 'loop' and 'segment'")
    if optimizer is None and (training.optimizer is not None or training.lr is not None):
        raise DniFxError("training with lr or optimizer needs optimizer=, the one that trains the model")
    if not (optimizer is None or isinstance(optimizer, torch.optim.Optimizer)):
        raise DniFxError(
            f"optimizer={optimizer!r}: the one that trains the model; a function that makes one needs step='segment'"
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise DniFxError("LBFGS takes no further parameters: transform without optimizer=, and train net.parameters()")
    if accumulate != 1:
        raise DniFxError("accumulate needs step='segment': in a loop, call zero_grad() and step() less often")


def plan(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    cuts: Cuts = "auto",
    synthesizer: str | Factory = "auto",
    classes: int | None = None,
    context_size: int | None = None,
    loss: str | Loss | None = None,
    objective: str = "memory",
    memory_budget: str | int | None = None,
    synthesizer_share: float | None = None,
    profile: bool = False,
    frontend: str = "auto",
    verify: bool = True,
    state: StateOption | None = None,
) -> Plan:
    """Decide where `transform` would cut, and build nothing. Arguments and errors are those of `transform`."""
    settings = Settings(classes=classes, context_size=context_size, loss=loss)
    check_settings(settings)
    limits = limits_of(objective, memory_budget, synthesizer_share)
    request = Request(cuts, synthesizer, settings, limits, profile, frontend, verify, state)
    return capture_and_plan(model, example_inputs_of(model, example_inputs, example_kwargs), request)[1]


def limits_of(objective: str, memory_budget: str | int | None, synthesizer_share: float | None) -> Limits:
    """What `transform` takes, as the search for cuts wants it."""
    budget = None if memory_budget is None else parse_bytes(memory_budget)
    limits = Limits(objective, synthesizer_share, budget)
    check_limits(limits)
    return limits


def example_inputs_of(model: nn.Module, example_inputs: Any, example_kwargs: Mapping[str, Any] | None) -> Inputs:
    if not isinstance(model, nn.Module):
        raise DniFxError(f"expected an nn.Module, not a {type(model).__name__}")
    lazy = [n for n, p in model.named_parameters() if isinstance(p, nn.parameter.UninitializedParameter)]
    if lazy:
        raise DniFxError(f"parameter {lazy[0]!r} has no shape yet: call the model once before rewriting it")
    if example_inputs is None and example_kwargs is None:
        return probe(model)
    return given(example_inputs, example_kwargs)
