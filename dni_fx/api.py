"""The functions that chain the steps: load, trace, annotate, partition, rewrite."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from dni_fx import costs, cutting, frontends, hooking, inputs, ops, pricing, profiling
from dni_fx.averaging import average_segments
from dni_fx.choosing import Limits, check_limits
from dni_fx.cost_model import OPTIMIZER_STATES, CostModel
from dni_fx.cutting import Cuts
from dni_fx.errors import DniFxError
from dni_fx.inputs import Inputs
from dni_fx.interfaces import Interfaces, build_dni, hold_parameters
from dni_fx.module import DecoupledModule, plain, share_state
from dni_fx.passes import pipeline
from dni_fx.passes.add_context import AddContext
from dni_fx.passes.add_synthesizers import AddSynthesizers, crossing_name
from dni_fx.passes.add_time_cuts import AddTimeCuts, time_name
from dni_fx.passes.copy_written import CopyWritten
from dni_fx.passes.cut_states_off import CutStatesOff
from dni_fx.passes.decouple_cuts import DecoupleCuts
from dni_fx.passes.mark_segments import MarkSegments
from dni_fx.passes.observe_output import ObserveOutput
from dni_fx.planning import Plan, Rewrite, StateTensor
from dni_fx.recurrent import add_time_cuts, time_activation
from dni_fx.replaying import replay_windows
from dni_fx.settings import Loss, Mix, Settings, Training, check_scaler, check_settings, loss_function, with_defaults
from dni_fx.states import StateOption, by_segments, find_state, states_alone
from dni_fx.stepping import OptimizerFactory, SegmentOptimizer, add_synthesizers, check_stepping
from dni_fx.synthesizers import Factory, resolve
from dni_fx.units import parse_bytes

__all__ = ["Request", "captured", "plan", "restore", "rewrite", "transform"]

_MOST_SOLVED = 2048  # features of a state, for which `least_squares` is made by itself
_SETTINGS = Settings()


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
    training: Training = _SETTINGS.training,
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
            float16, bfloat16, or more than 2,048 features. See `dni_fx.recurrent`.

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
    if training.horizon > 1 and (scaler is not None or compile is not False):
        raise DniFxError("a horizon runs windows once more, as they are: leave scaler and compile out")
    limits = limits_of(objective, memory_budget, synthesizer_share)
    request = Request(cuts, synthesizer, settings, limits, profile, frontend, verify, state)
    module, found = captured(model, example_inputs_of(model, example_inputs, example_kwargs), request)
    if mix and not found.cuts:
        raise DniFxError("mix is for cuts in depth: say cuts=")
    net = rewrite(module, found, synthesizer, settings)
    if scaler is not None:
        net.dni.scale_with(scaler)
    if step == "segment":
        SegmentOptimizer(net, optimizer, training=training, accumulate=accumulate, scaler=scaler)  # type: ignore[arg-type]
    elif isinstance(optimizer, torch.optim.Optimizer):
        _add_to(optimizer, net.dni, training)
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


def _add_to(optimizer: torch.optim.Optimizer, dni: Interfaces, training: Training) -> None:
    """Let the synthesizers' parameters be trained whenever the optimizer steps."""
    added = list(dni.parameters())
    if not added:
        return
    if training.optimizer is None:
        add_synthesizers(optimizer, dni, added, training)
        return
    own = dni.optimizer = training.optimizer(added)
    zero_grad = optimizer.zero_grad

    def step(*_: object) -> None:
        own.step()
        own.zero_grad()

    def zero_both(set_to_none: bool = True) -> None:
        zero_grad(set_to_none)
        own.zero_grad(set_to_none)

    optimizer.register_step_post_hook(step)
    optimizer.zero_grad = zero_both  # type: ignore[method-assign]  # no hook for it: a batch may be skipped


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
    return captured(model, example_inputs_of(model, example_inputs, example_kwargs), request)[1]


@dataclass(frozen=True)
class Request:
    """How a model is to be captured, and where cut; as in `transform`."""

    cuts: Cuts = "auto"
    synthesizer: str | Factory = "auto"
    settings: Settings = field(default_factory=Settings)
    limits: Limits = field(default_factory=Limits)
    profile: bool = False
    frontend: str = "auto"
    verify: bool = True
    state: StateOption | None = None


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
        return inputs.probe(model)
    return inputs.given(example_inputs, example_kwargs)


def captured(model: nn.Module, example: Inputs, request: Request) -> tuple[DecoupledModule, Plan]:
    """Capture, compare with eager, annotate, partition."""
    cuts, frontend, profile = request.cuts, request.frontend, request.profile
    if isinstance(cuts, Plan) and frontend == "auto":
        frontend = cuts.frontend  # its nodes are those of that front end
    in_depth = bool(cuts.cuts) if isinstance(cuts, Plan) else cuts != "auto" or not request.state
    module, used, tried = frontends.capture(model, example, frontend, compare=request.verify, in_depth=in_depth)
    tensors = _state(model, module, example, request)
    among = hooking.longest_container(module) if isinstance(module, hooking.HookedModule) else frozenset()
    prices, refused = pricing.synthesizer_prices(module.graph, request.synthesizer, request.settings, measure=profile)
    times = profiling.node_times(module, example) if profile else None
    flow = costs.dataflow(module.graph, times, states_alone(module, tensors))
    resident = costs.resident(model, example, OPTIMIZER_STATES)
    cost_model = CostModel(flow, prices, resident, refused=refused, unit="s" if profile else "FLOPs")
    if in_depth:
        decision = cutting.choose(module.graph, cost_model, cuts, request.limits, among)
    elif request.limits != Limits():
        raise DniFxError("objective, memory budget and synthesizer share are for cuts in depth: say cuts=")
    else:
        why = cuts.why if isinstance(cuts, Plan) else "in time alone; say cuts= for some in depth, too"
        decision = cutting.Decision((), why)
    described = (inputs.describe(example), example.source)
    plan = cutting.make_plan(type(model).__name__, module.graph, cost_model, decision, *described, used, tried)
    if tensors and plan.cuts and isinstance(module, hooking.HookedModule):
        raise DniFxError("cuts in time and in depth together need a graph, by the front end fx or export")
    return module, replace(plan, states=by_segments(module, tensors, plan.cuts))


def _state(model: nn.Module, module: DecoupledModule, example: Inputs, request: Request) -> tuple[StateTensor, ...]:
    """The tensors that are to be cut off in time: as asked for, else as the plan says."""
    if request.state is not None and request.state is not False:
        return find_state(model, module, example, request.state)
    saved = request.cuts.states if isinstance(request.cuts, Plan) else ()
    if saved and cutting.fingerprint(module.graph) != request.cuts.fingerprint:  # type: ignore[union-attr]
        raise DniFxError("the plan was made for another graph; make a new one: dni-fx plan TARGET")
    return tuple(tensor for state in saved for tensor in state.tensors)


def rewrite(
    module: DecoupledModule, plan: Plan, synthesizer: str | Factory = "auto", settings: Settings = _SETTINGS
) -> DecoupledModule:
    """Put the synthesizers of `plan` into a captured, annotated module. Arguments and errors as for `transform`."""
    check_settings(settings)
    if plan.states:
        _check_for_time(settings, plan)
    names, factories = _synthesizers(plan, synthesizer, settings)
    rewritten = plan.with_rewrite(Rewrite.of(settings, names))
    if not plan.states and settings.training.for_time:
        raise DniFxError("discount, centered, horizon and auxiliary are for a cut in time: say state=")
    named = isinstance(synthesizer, str)
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    dni = build_dni(rewritten, factories, with_defaults(settings, named=named), device=device)
    add_time_cuts(dni, factories, with_defaults(settings, named=named, in_time=True), device=device)
    hold_parameters(module, dni)
    module.add_module("dni", dni)
    dni.train(module.training)
    unlocked = settings.unlock == "backward"
    # The front end modules has no graph, and runs the ends of its cut in time around the model.
    states = () if isinstance(module, hooking.HookedModule) else plan.states
    if unlocked:
        average_segments(module)
    pipeline.run(
        module,
        [
            MarkSegments([cut.after for cut in plan.cuts]),
            *([CutStatesOff([t.output for state in states for t in state.tensors])] if states else []),
            *([AddContext()] if settings.size else []),
            *([ObserveOutput()] if hasattr(dni, "outcome") else []),
            AddSynthesizers([[tensor.node for tensor in cut.tensors] for cut in plan.cuts]),
            DecoupleCuts(ops.decouple if unlocked else ops.inject),
            *([CopyWritten()] if unlocked else []),
            *([AddTimeCuts(states)] if states else []),
        ],
    )
    replay_windows(module)
    return module


def _check_for_time(settings: Settings, plan: Plan) -> None:
    """Raise a DniFxError if the plan's cuts in time cannot be made so."""
    if not plan.cuts and (settings.size or settings.training.warmup):
        raise DniFxError("labels, context and warm-up are for cuts in depth: say cuts=")
    if not plan.cuts and settings.training.scale == "rms":
        raise DniFxError('scale="rms" is for cuts in depth: in time it would follow predictions, which targets hold')
    apart = [state for state in plan.states if state.enters != (state.leaves,)]
    if apart and settings.training.auxiliary and settings.unlock == "backward":
        raise DniFxError(
            f"auxiliary needs states that one segment takes and makes anew, but {apart[0].tensors[0].input} comes out "
            'of another: cut elsewhere, or use unlock="none"'
        )
    several = [state for state in plan.states if len(state.enters) > 1]
    if several and settings.unlock == "backward":
        names = ", ".join(tensor.input for tensor in several[0].tensors)
        raise DniFxError(
            f"state {names} is used in segments {', '.join(map(str, several[0].enters))}, which go backward one by "
            'one: cut elsewhere, or use unlock="none"'
        )


def _synthesizers(
    plan: Plan, synthesizer: str | Factory, settings: Settings
) -> tuple[dict[str, str], dict[str, Factory]]:
    """Name and factory of the synthesizer at each crossing."""
    loss = None if settings.loss is None else loss_function(settings.loss)
    names, factories = {}, {}
    for index, cut in enumerate(plan.cuts):
        for tensor in cut.tensors:
            crossing = crossing_name(index, tensor.node)
            names[crossing], factories[crossing] = resolve(synthesizer, tensor.shape, tensor.axis, loss)
    for index, state in enumerate(plan.states):
        name, activation = time_name(index), time_activation(state)
        # `benchmarks/results/time_cut.md`; its equations take time with the cube of the features, and all digits.
        solves = activation.dtype.itemsize > 2 and activation.features <= _MOST_SOLVED
        auto = "least_squares" if solves else "mlp"
        own = auto if synthesizer == "auto" else synthesizer
        names[name], factories[name] = resolve(own, activation.shape, 1)
    return names, factories


def restore(net: DecoupledModule) -> nn.Module:
    """The plain model with the trained weights.

    Returns:
        The very model that was given to `transform`, which shares its parameters with `net`; for one that came from
        `dni_fx.load` without a model, the graph with all that the rewrite added taken out again.

    Raises:
        DniFxError: If `net` was not made by dni-fx.
    """
    if not isinstance(net, DecoupledModule):
        raise DniFxError(f"expected what dni_fx.transform returned, not a {type(net).__name__}")
    dni = getattr(net, "dni", None)
    if dni is not None and isinstance(dni.optimizer, SegmentOptimizer):
        dni.optimizer.remove()
    original = net.__dict__.get("dni_original")
    if isinstance(original, nn.Module):
        share_state(net, original, without="dni")
        original.training = net.training
        return original
    return plain(net)
