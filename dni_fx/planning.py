"""Plan a model: capture it, weigh its exits or synthesizers, and choose its cuts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import networkx as nx
from torch import nn

from dni_fx.arguments import check_arguments
from dni_fx.capture import (
    Capture,
    StateOption,
    capture,
    find_order,
    find_state,
    plan_time_cuts,
    possible_state,
    warn_of_rows,
    warn_of_time_first_inputs,
)
from dni_fx.cost import (
    OPTIMIZER_STATES,
    CostModel,
    ExitPlanner,
    HookedExitPlanner,
    exit_choices,
    map_choices,
    most_for_units,
    node_times,
    resident,
    synthesizer_prices,
    with_exits,
    without_rows,
)
from dni_fx.cuts import Cuts, Decision, Limits, Recomputing, check_graph, decide, in_better_order, make_plan
from dni_fx.errors import DniFxError, NoLegalCutError
from dni_fx.graph import dataflow, record_of, returned_nodes
from dni_fx.model import Inputs, any_fake, describe
from dni_fx.plans import Plan, StateTensor
from dni_fx.progress import announce
from dni_fx.runtime import DecoupledModule, is_cross_entropy
from dni_fx.settings import Settings, check_loss, loss_function
from dni_fx.synthesizers import FOR_MAPS, ExitOptions, Factory

__all__ = ["Request", "capture_and_plan", "exit_planner", "has_labels_for_positions"]

_NOTHING_SAVED = (
    "auto makes none, since they would save less than 5 % of memory, and of time on several devices: train with "
    "backprop; a number of segments, such as 2, cuts all the same"
)
_WITH_A_LOSS = "with loss= the synthesizers would be exits through the model's own later layers, which train better"


@dataclass(frozen=True)
class Request:
    """How to capture a model and where to cut it. The attributes are arguments of `dni_fx.transform`."""

    cuts: Cuts = "auto"
    synthesizer: str | Factory = "auto"
    settings: Settings = field(default_factory=Settings)
    limits: Limits = field(default_factory=Limits)
    profile: bool = False
    frontend: str = "auto"
    verify: bool = True
    state: StateOption | None = None
    inside: str = "keep"

    def __post_init__(self) -> None:
        check_arguments(vars(self))

    @property
    def recomputes(self) -> bool:
        """Whether segments may compute their activations again."""
        return self.inside == "checkpoint"


def capture_and_plan(model: nn.Module, example: Inputs, request: Request) -> tuple[DecoupledModule, Plan]:
    """Capture and annotate a model, and plan its cuts."""
    _check_trainable(model)
    check_loss(request.settings, next((p.device for p in model.parameters()), "cpu"))
    if request.profile and any_fake(example.tensors()):
        raise DniFxError("profile=True runs the model to measure times, and its inputs are fake: leave profile out")
    cuts, frontend = request.cuts, request.frontend
    if isinstance(cuts, Plan) and frontend == "auto":
        frontend = cuts.frontend  # the plan names nodes of this front end's graph
    in_depth = bool(cuts.cuts) if isinstance(cuts, Plan) else cuts != "auto" or not request.state
    captured = capture(model, example, frontend, compare=request.verify, in_depth=in_depth)
    module = captured.module
    if isinstance(cuts, Plan):
        check_graph(module, cuts)
    _check_inside(module, request, in_depth=in_depth)
    announce("choosing the cuts", 0.97)
    tensors = _state_tensors(model, module, example, request)
    asks = request.state is None and not tensors and not isinstance(cuts, Plan)  # a plan has its hint
    hint = _state_hint(model, module, example) if asks else ""
    try:
        plan = _plan(model, example, request, captured, tensors, in_depth=in_depth)
    except NoLegalCutError as error:
        raise NoLegalCutError(f"{error}{hint}") from None
    return module, replace(plan, why=plan.why + hint, states=plan_time_cuts(module, tensors, plan.cuts))


def _plan(
    model: nn.Module,
    example: Inputs,
    request: Request,
    captured: Capture,
    tensors: Sequence[StateTensor],
    *,
    in_depth: bool,
) -> Plan:
    """The plan of the cuts in depth of a captured model, whose state is in these tensors."""
    module, cuts = captured.module, request.cuts
    exits = exit_choices(module, request.synthesizer, request.settings, in_time=bool(tensors)) if in_depth else []
    if request.settings.size and not exits:  # each synthesizer pairs its tensor with labels
        warn_of_time_first_inputs(module)
        if in_depth:
            find_order(module, example)
    states = {tensor.output for tensor in tensors} if module.dni_runs_graph else set()
    times = node_times(module, example) if request.profile else None
    resident_bytes = resident(model, example, OPTIMIZER_STATES)
    origin = describe(example), example.source, captured.frontend, captured.tried

    def planned() -> tuple[CostModel, Plan]:
        """The plan in the order that the nodes have now."""
        chooser = _Chooser(module, dataflow(module.graph, times, states), resident_bytes, request)
        if in_depth:
            cost_model, decision = chooser.choose(exits)
        else:
            cost_model, decision = chooser.cost_model(None), _no_cuts_in_depth(request)
        plan = make_plan(type(model).__name__, module.graph, cost_model, decision, *origin)
        searched = in_depth and cuts == "auto" and request.limits.budget is None  # a budget asks for cuts
        if searched and plan.forecast is not None and not plan.forecast.saves:
            decision = Decision((), _NOTHING_SAVED)
            plan = make_plan(type(model).__name__, module.graph, cost_model, decision, *origin)
        return cost_model, plan

    chosen_freely = in_depth and not tensors and (cuts == "auto" or (isinstance(cuts, int) and cuts >= 2))
    if chosen_freely and module.dni_runs_graph and not request.recomputes:
        segments = cuts if isinstance(cuts, int) else None
        cost_model, plan = in_better_order(module, dataflow(module.graph, times), planned, segments, request.limits)
    else:
        cost_model, plan = planned()
    if request.settings.mix and not plan.cuts:
        raise DniFxError("mix is for cuts in depth, and there are none: give a number of segments, as in cuts=2")
    by_default = request.synthesizer == "auto" and isinstance(cuts, str | int) and not tensors
    if by_default and plan.cuts and cost_model.exits is None and request.settings.loss is None:
        plan = replace(plan, why=f"{plan.why}; {_WITH_A_LOSS}")
    warn_of_rows(module, [tensor.node for cut in plan.cuts for tensor in cut.tensors])
    if tensors and plan.cuts and not module.dni_runs_graph:
        raise DniFxError("cuts in time and in depth together need a graph, by the front end fx or export")
    known = cuts if isinstance(cuts, Plan) and request.synthesizer == "auto" else None
    return with_exits(plan, cost_model.flow, cost_model.exits, known)


@dataclass(frozen=True)
class _Chooser:
    """Chooses the cuts in depth of a captured model."""

    module: DecoupledModule
    flow: "nx.DiGraph[str]"
    resident_bytes: int
    request: Request

    def choose(self, exits: Sequence[ExitOptions]) -> tuple[CostModel, Decision]:
        """The cuts, with the best of these exits; without any, with a synthesizer for each tensor."""
        if not exits:
            return self._without_exits()
        if len(exits) > 1:
            return self._with_best(exits)
        cost_model = self.cost_model(exits[0])
        return cost_model, self._decide(cost_model)

    def _with_best(self, exits: Sequence[ExitOptions]) -> tuple[CostModel, Decision]:
        """The cuts, with the first exits that keep the share of a step; else with those that take the least.

        Args:
            exits: The last ones have no units.
        """
        found: list[tuple[CostModel, Decision]] = []
        without_units = self.cost_model(exits[-1])
        for options in exits:
            is_last = options is exits[-1]
            cost_model = without_units if is_last else self.cost_model(options)
            try:
                decision = self._decide(cost_model)
            except DniFxError:
                if is_last and not found:
                    raise
                continue
            if not is_last and cost_model.exits is not None and not cost_model.exits.suits(decision.cuts):
                continue
            found.append((cost_model, decision))
            most = self.request.limits.share
            if most is None:  # an exit needs its tail
                most = without_units.share_of_layers(decision.cuts) + most_for_units(len(decision.cuts) + 1)
            if cost_model.share(decision.cuts) <= most and not is_last:
                return cost_model, decision
        return min(reversed(found), key=lambda one: one[0].share(one[1].cuts))

    def _without_exits(self) -> tuple[CostModel, Decision]:
        """The cuts, with the first synthesizer of maps whose best cuts keep the share of a step; else with the last."""
        cuts, limits = self.request.cuts, self.request.limits
        choices = map_choices(self.module.graph, self.request.synthesizer, self.request.settings)
        if isinstance(cuts, Plan):
            choices = [cuts.for_maps]
        elif not (isinstance(cuts, int) or cuts == "auto"):  # the share limits chosen cuts alone
            choices = choices[:1]
        strict = limits.strict if len(choices) > 1 else limits
        for choice in choices:
            cost_model = self.cost_model(None, choice)
            try:
                decision = self._decide(cost_model, strict)
            except DniFxError:
                if choice != choices[-1]:
                    continue
                decision = self._decide(cost_model)
            if decision.verdict is None or not decision.verdict.share_binds:
                break
        if choice != choices[0]:
            share = strict.share
            what = "fit into no budget" if share is None else f"take more than {100 * share:.2g} % of a step"
            decision = decision._replace(why=f"{decision.why}; maps get {choice}, since dearer synthesizers {what}")
        return cost_model, decision._replace(for_maps=choice)

    def _decide(self, cost_model: CostModel, limits: Limits | None = None) -> Decision:
        """The cuts by a cost model, within the limits of the request or other limits."""
        request = self.request
        inside = Recomputing(cost_model, request.settings.unlock == "backward") if request.recomputes else None
        ends = self.module.dni_preferred_ends()
        return decide(self.module.graph, cost_model, request.cuts, limits or request.limits, ends, inside)

    def cost_model(self, options: ExitOptions | None, for_maps: str = FOR_MAPS[0]) -> CostModel:
        """The costs of cuts with exits; without options, with a synthesizer for each tensor."""
        settings, unit = self.request.settings, "s" if self.request.profile else "FLOPs"
        if options is not None:
            exits = exit_planner(self.module, self.flow, options, settings)
            return CostModel(self.flow, {}, self.resident_bytes, exits=exits, unit=unit)
        graph, measure = self.module.graph, self.request.profile
        dense = has_labels_for_positions(self.module, settings)
        prices, refused = synthesizer_prices(
            graph, self.request.synthesizer, settings, measure=measure, dense=dense, for_maps=for_maps
        )
        avoided = without_rows(graph, settings)
        return CostModel(self.flow, prices, self.resident_bytes, refused=refused, avoided=avoided, unit=unit)


def _check_trainable(model: nn.Module) -> None:
    """Raise a NoLegalCutError if the model has no parameter to train."""
    name = type(model).__name__
    if not any(True for _ in model.parameters()):
        raise NoLegalCutError(f"{name} has no parameters: there is nothing to train, and no place for a cut")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise NoLegalCutError(
            f"no parameter of {name} requires grad: there is nothing to train; call requires_grad_(True) on the layers "
            "that are to train"
        )


def _check_inside(module: DecoupledModule, request: Request, *, in_depth: bool) -> None:
    """Raise a DniFxError if no segment can compute its activations again."""
    if request.recomputes and not in_depth:
        raise DniFxError("inside='checkpoint' is for segments between cuts in depth: give cuts=")
    if request.recomputes and not module.dni_runs_graph:
        raise DniFxError(
            "inside='checkpoint' needs a graph, by the front end fx or export: leave inside out, or checkpoint modules "
            "in the model's own code"
        )


def _state_hint(model: nn.Module, module: DecoupledModule, example: Inputs) -> str:
    """How to cut the model in time, if what it takes and returns is a state; empty if nothing may be one."""
    state = possible_state(model, module, example) if len(example.tensors()) > 1 else {}
    if not state:
        return ""
    option = ",".join(f"{argument}={output}" for argument, output in state.items())
    names = " and ".join(state)
    return f"; if {names} is a state, state={json.dumps(state)} (--state {option}) cuts the model in time"


def exit_planner(
    module: DecoupledModule, flow: "nx.DiGraph[str]", options: ExitOptions, settings: Settings
) -> ExitPlanner:
    """The planner of exits for the front end that captured the model."""
    if options.tokens < 1 and not (settings.loss and is_cross_entropy(loss_function(settings.loss))):
        raise DniFxError(
            "exit: tokens is for the cross entropy of torch: loss='cross_entropy', a functools.partial of it, or "
            "nn.CrossEntropyLoss, with one label for each position"
        )
    planner = ExitPlanner if module.dni_runs_graph else HookedExitPlanner
    return planner(module, flow, options, has_loss=settings.loss is not None)


def has_labels_for_positions(module: DecoupledModule, settings: Settings) -> bool:
    """Whether an output is a map of values that the loss compares with labels: (N, classes, ...)."""
    if settings.loss is None:
        return False
    shapes = [record_of(node).shape or () for node in returned_nodes(module.graph)]
    return any(len(shape) > 2 and settings.size in (1, shape[1], shape[-1]) for shape in shapes)


def _no_cuts_in_depth(request: Request) -> Decision:
    """The decision for a model that is cut in time alone."""
    if request.limits != Limits():
        raise DniFxError("objective, memory budget and synthesizer share are for cuts in depth: give cuts=")
    if isinstance(request.cuts, Plan):
        return Decision((), request.cuts.why)
    return Decision((), "in time alone; give cuts= for cuts in depth, too")


def _state_tensors(
    model: nn.Module, module: DecoupledModule, example: Inputs, request: Request
) -> tuple[StateTensor, ...]:
    """The tensors to cut off in time, by the argument `state` or else by the plan in `cuts`."""
    if request.state is not None and request.state is not False:
        return find_state(model, module, example, request.state)
    plan = request.cuts
    if not isinstance(plan, Plan):
        return ()
    return tuple(tensor for state in plan.states for tensor in state.tensors)
