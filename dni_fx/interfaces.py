"""All that a rewrite adds to a model, under `net.dni`: a synthesizer a crossing, the segments, how they are doing."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn

from dni_fx import ops
from dni_fx.errors import ContextError, DniFxError
from dni_fx.passes.add_synthesizers import crossing_name
from dni_fx.passes.add_time_cuts import time_name
from dni_fx.planning import Plan
from dni_fx.settings import Settings, Training, check_scaler, loss_function
from dni_fx.synthesizers import Activation, Carried, Factory, LossHead, Outcome, check_labels, expand_context
from dni_fx.synthesizers.base import centered
from dni_fx.synthesizers.losses import Link

__all__ = ["Crossing", "Interfaces", "build_dni", "hold_parameters", "owned_parameters"]

# Steps between two looks at the targets; a look costs a few passes over the tensor. A prime: of what comes in turns,
# such as the windows of a sequence, each is seen.
MEASURE_EVERY = 19
MEASURES = ("cosine", "relative_error", "target_norm", "prediction_norm")


class LossScale:
    """What a GradScaler multiplies the loss by, and so targets and all gradients: predictions follow it."""

    def __init__(self, scaler: torch.amp.GradScaler) -> None:
        self.scaler = scaler

    def factor(self) -> float | Tensor:
        """A number on the CPU, else a tensor: nobody waits for the device."""
        if torch.compiler.is_compiling():
            raise DniFxError("the scale of a loss changes from step to step, and cannot be compiled into one graph")
        scale = self.scaler._scale
        return self.scaler.get_scale() if scale is None or scale.device.type == "cpu" else scale

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of a net is trained by itself, without one."""
        return type(None), ()


class Crossing(nn.Module):
    """One tensor at one cut: runs its synthesizer while training, and watches how good it is."""

    in_time = False
    centered = False  # whether what the synthesizer says is taken less its mean over the batch
    measured: Tensor
    square: Tensor

    def __init__(self, synthesizer: nn.Module, activation: Activation, settings: Settings) -> None:
        super().__init__()
        self.synthesizer = synthesizer
        self.axis = activation.axis
        self.classes = settings.classes
        self.context_size = settings.size
        self.scale = 1.0 if settings.training.scale is None else settings.training.scale
        self.every = settings.training.every
        self.loss_scale: LossScale | None = None
        # A compiler must not put it into one graph with its segment, which goes backward before it.
        self.apart = settings.unlock == "backward"
        self.steps = 0
        device = activation.device
        self.register_buffer("measured", torch.full((len(MEASURES),), math.nan, device=device), persistent=False)
        # Running mean square of what is regressed; 0: nothing yet.
        self.register_buffer("square", torch.zeros((), device=device), persistent=self.scale == "rms")

    # fx.Graph.eliminate_dead_code must not remove a call whose result it believes unused.
    _is_impure = True

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor | None:
        """The synthetic gradient, shaped like `activation`; None in eval mode and where grad mode is off."""
        if not (self.training and torch.is_grad_enabled()):
            return None
        return self._apart(activation, context) if self.apart else self._predict(activation, context)

    @torch.compiler.disable(reason=ops.ONE_BY_ONE)  # type: ignore[untyped-decorator]
    def _apart(self, activation: Tensor, context: Tensor | None) -> Tensor:
        return self._predict(activation, context)

    def _predict(self, activation: Tensor, context: Tensor | None) -> Tensor:
        context = self._conditioned(activation, context)
        trains = self._begin()
        with contextlib.nullcontext() if trains else torch.no_grad():
            prediction = self._scaled(self._said(activation, context))
        if prediction.shape != activation.shape:
            raise DniFxError(
                f"synthesizer {type(self.synthesizer).__name__} returned shape {list(prediction.shape)} for an "
                f"activation of shape {list(activation.shape)}"
            )
        if trains and not torch.compiler.is_compiling():
            self._watch(prediction)
        return prediction

    def progress(self) -> dict[str, Any]:
        """Where it is in a run, beside parameters and buffers."""
        carried = getattr(self.synthesizer, "carried", None)
        state = carried.progress() if isinstance(carried, Carried) else None
        return {"steps": self.steps, "carried": state}

    def resume(self, progress: Mapping[str, Any]) -> None:
        """Go on from where `progress` was."""
        self.steps = progress["steps"]
        carried = getattr(self.synthesizer, "carried", None)
        if isinstance(carried, Carried):
            carried.resume(progress["carried"], self.measured.device)

    def reset(self, rows: Tensor | None = None) -> None:
        """New sequences begin, everywhere or in these rows: see `Interfaces.reset`."""
        reset: Any = getattr(self.synthesizer, "reset", None)
        if reset is not None and rows is None:
            reset()

    def _said(self, activation: Tensor, context: Tensor | None) -> Tensor:
        said: Tensor = self.synthesizer(activation, context)
        own = getattr(self.synthesizer, "own_unit", False)  # wants errors of what is whole
        return centered(said) if self.centered and not own else said

    def _begin(self) -> bool:
        """Count a step; say whether the synthesizer is trained in it."""
        if torch.compiler.is_compiling():
            if self.every > 1 or self.scale == "rms":
                raise DniFxError('every and scale="rms" change from step to step, and cannot be compiled')
            return True
        self.steps += 1
        return (self.steps - 1) % self.every == 0

    def _conditioned(self, activation: Tensor, context: Tensor | None) -> Tensor | None:
        if not self.context_size:
            return None
        if context is None:
            what = "labels" if self.classes is not None else "a context vector a sample"
            raise ContextError(
                f"this model is conditioned on {what}: while training, call net(..., dni_context=...) "
                "(in eval mode and under no_grad it is not needed)"
            )
        if not isinstance(context, Tensor):
            raise ContextError(f"dni_context is a {type(context).__name__}; expected a tensor")
        if isinstance(self.synthesizer, LossHead):
            return check_labels(context, self.classes, self.context_size)
        return expand_context(context, activation, self.axis, classes=self.classes, size=self.context_size)

    def _scaled(self, raw: Tensor) -> Tensor:
        """What it says of each sample's own loss, as the gradient of the mean; the error comes in its own units."""
        batch = ops.batch_size(raw)
        scale: Any = 1.0 if getattr(self.synthesizer, "own_unit", False) else self.scale
        if scale == "rms":
            scale = torch.where(self.square > 0, self.square.rsqrt(), 1.0)
        factor: Any = 1.0
        if self.loss_scale is not None:
            factor, raw = self.loss_scale.factor(), raw.float()  # float16 cannot hold the factor
        # factor * raw / scale, with the slope of half (raw - scale * target)^2
        scaled: Tensor = raw / (batch / scale)
        rest = (factor / scale - scale) / batch
        if isinstance(rest, Tensor):
            return scaled.addcmul_(raw.detach(), rest)
        return scaled.add_(raw.detach(), alpha=rest) if rest else scaled

    def _watch(self, prediction: Tensor) -> None:
        look = (self.steps - 1) % (MEASURE_EVERY * self.every) == 0
        if (look or self.scale == "rms") and prediction.requires_grad:
            factor: Any = 1.0 if self.loss_scale is None else self.loss_scale.factor()
            synthetic = prediction.detach() / factor
            prediction.register_hook(lambda error: self._hear(synthetic, error, look, factor))

    def _hear(self, synthetic: Tensor, error: Tensor | None, look: bool, factor: Any) -> None:
        """`error` is the batch size times synthetic - target, scaled, which the boundary sends back; None: dropped."""
        if error is None:
            return
        error = error / (ops.batch_size(synthetic) * factor)
        target = synthetic - error
        if self.scale == "rms":  # the unit of what is regressed follows the targets
            now = (target.float() * ops.batch_size(synthetic)).square().mean().to(self.square)
            self.square = torch.where(self.square > 0, self.square.lerp(now, 0.01), now)
        if look:
            target = (centered(target) if self.centered else target).flatten().float()
            synthetic = synthetic.flatten().float()
            error = synthetic - target
            norms = target.dot(target).sqrt(), synthetic.dot(synthetic).sqrt()  # on a CPU faster than norm()
            cosine = target.dot(synthetic) / (norms[0] * norms[1]).clamp(min=torch.finfo(torch.float32).tiny)
            self.measured = torch.stack([cosine, error.dot(error).sqrt() / norms[0], *norms]).detach()


class Interfaces(nn.Module):
    """All that a rewrite adds to a model: the plan, a `Crossing` for each crossing tensor, the segments."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        # That of all segments, with step="segment"; else that of the synthesizers, where they have one of their own.
        self.optimizer: torch.optim.Optimizer | None = None
        self.replay: Any = None  # with a horizon: what keeps the last windows, a `dni_fx.replaying.Replay`

    def __getstate__(self) -> dict[str, Any]:
        """A copy of a net has no optimizer: its parameters are others."""
        return self.__dict__ | {"optimizer": None}

    @property
    def crossings(self) -> dict[str, Crossing]:
        """By name, as in `net.code`."""
        return {name: module for name, module in self.named_children() if isinstance(module, Crossing)}

    @property
    def synthesizers(self) -> dict[str, nn.Module]:
        """Synthesizers by the name of their crossing, as in `net.code`."""
        return {name: crossing.synthesizer for name, crossing in self.crossings.items()}

    def scale_with(self, scaler: torch.amp.GradScaler) -> None:
        """Let predictions follow the scale of the loss.

        Raises:
            DniFxError: If targets are clipped.
        """
        check_scaler(scaler, self.plan.rewrite.training if self.plan.rewrite is not None else Training())
        for crossing in self.crossings.values():
            crossing.loss_scale = LossScale(scaler) if scaler.is_enabled() else None
            if getattr(crossing.synthesizer, "own_unit", False):
                setattr(crossing.synthesizer, "loss_scale", crossing.loss_scale)  # noqa: B010  # for mypy, it is a tensor

    def reset(self, rows: Tensor | None = None) -> None:
        """New sequences begin: recurrent synthesizers drop the state that they carry from step to step.

        Args:
            rows: For a cut in time: where they do, a bool a row of the last call; None: everywhere. It is not needed
                where the state that comes in is zero.
        """
        for crossing in self.crossings.values():
            crossing.reset(rows)

    @property
    def segments(self) -> list[ops.Segment]:
        """All but the last, from below: each has a cut above it."""
        return [module for module in self.children() if isinstance(module, ops.Segment)]

    def progress(self) -> dict[str, Any]:
        """Where a run is, beside parameters and buffers."""
        found: dict[str, Any] = {name: crossing.progress() for name, crossing in self.crossings.items()}
        return found if self.replay is None else found | {"replay": self.replay.progress()}

    def resume(self, progress: Mapping[str, Any]) -> None:
        """Go on from where `progress` was."""
        for name, crossing in self.crossings.items():
            crossing.resume(progress[name])
        if self.replay is not None:
            self.replay.resume(progress["replay"])

    def metrics(self) -> dict[str, dict[str, float]]:
        """How well each synthesizer predicts its target, at the last step that was looked at (every nineteenth).

        Returns:
            For each crossing: `cosine` between prediction and target, `relative_error` |g - target| / |target|,
            `target_norm` and `prediction_norm`, of the gradient of the mean loss; `steps`, the number of training steps
            so far; and `skipped`, how often a prediction or target of its cut was dropped, for it was not finite.
            Empty until a step has run; NaN where no target has come back.
        """
        found = {}
        segments = self.segments
        for name, crossing in self.crossings.items():
            if crossing.steps:
                own = getattr(crossing, "segment", None)  # of a cut in time
                segment = own or segments[int(name.removeprefix("cut").split("_")[0])]
                measured = dict(zip(MEASURES, crossing.measured.tolist(), strict=True))
                found[name] = measured | {"steps": crossing.steps, "skipped": int(segment.skipped)}
        return found


def build_dni(
    plan: Plan, factories: Mapping[str, Factory], settings: Settings, *, device: torch.device | str = "cpu"
) -> Interfaces:
    """The submodule `dni` for a plan; its segments hold no parameters yet.

    Args:
        factories: What makes the synthesizer of each crossing.
    """
    dni = Interfaces(plan)
    for index, cut in enumerate(plan.cuts):
        for tensor in cut.tensors:
            name = crossing_name(index, tensor.node)
            dtype = getattr(torch, tensor.dtype)
            axis = tensor.axis % len(tensor.shape)
            activation = Activation(tensor.shape, dtype, torch.device(device), axis)
            made = factories[name](activation, settings.size)
            if not isinstance(made, nn.Module):
                raise DniFxError(f"the synthesizer for {name} is a {type(made).__name__}, not an nn.Module")
            made.to(device=activation.device, dtype=dtype)
            dni.add_module(name, Crossing(made, activation, settings))
        dni.add_module(f"segment{index}", ops.Segment(settings.mix, settings.training).to(device))
    _tell_critics(dni, settings)
    return dni


def _tell_critics(dni: Interfaces, settings: Settings) -> None:
    """Let each critic hear the values of the one at the next cut, and the last one those of the model's output."""
    heads = {name: s for name, s in dni.synthesizers.items() if isinstance(s, LossHead)}
    if not any(head.fits_value for head in heads.values()):
        return
    assert settings.loss is not None
    outcome = Outcome(loss_function(settings.loss))
    dni.add_module("outcome", outcome)
    below: list[Link] = []
    for index, cut in enumerate(dni.plan.cuts):
        here = [heads[name].link for t in cut.tensors if (name := crossing_name(index, t.node)) in heads]
        if here:
            here[0].below, below = below, here
    outcome.link.below = below


def hold_parameters(net: fx.GraphModule, dni: Interfaces) -> None:
    """Let each segment below a cut hold the parameters that its nodes use in `net`'s graph."""
    for segment, used in zip(dni.segments, parameters_by_segment(net, dni.plan)[:-1], strict=True):
        segment.hold(used)


def parameters_by_segment(net: fx.GraphModule, plan: Plan) -> list[list[nn.Parameter]]:
    """The parameters that the nodes of each segment use in `net`'s graph."""
    by_name = {node.name: node for node in net.graph.nodes}
    output = net.graph.output_node()  # a saved class does not know its name
    called = {str(node.target) for node in net.graph.nodes if node.op == "call_module"}
    found = []
    for segment in plan.segments:
        used: dict[int, nn.Parameter] = {}
        for node in (by_name.get(name, output) for name in segment.nodes):
            if node.op == "call_module":
                used.update({id(p): p for p in _own_parameters(net, str(node.target), called)})
            for source in node.all_input_nodes:
                value = attrgetter(str(source.target))(net) if source.op == "get_attr" else None
                if isinstance(value, nn.Parameter):
                    used[id(value)] = value
        found.append(list(used.values()))
    return found


def owned_parameters(net: fx.GraphModule, dni: Interfaces) -> list[tuple[list[nn.Parameter], list[nn.Parameter]]]:
    """Parameters of every segment, and of the synthesizers whose targets come when it goes backward.

    One that several segments use is in the last of them; one that no node is known to use, in the last of all.
    """
    owner: dict[nn.Parameter, int] = {}
    for index, used in enumerate(parameters_by_segment(net, dni.plan)):
        owner |= dict.fromkeys(used, index)
    theirs = set(dni.parameters())
    for parameter in net.parameters():  # what modules use that are no leaves is not in a record of calls
        if parameter not in theirs:
            owner.setdefault(parameter, len(dni.plan.cuts))
    found: list[tuple[list[nn.Parameter], list[nn.Parameter]]] = [([], []) for _ in dni.plan.segments]
    for parameter, index in owner.items():
        found[index][0].append(parameter)
    for index, cut in enumerate(dni.plan.cuts):
        for tensor in cut.tensors:
            synthesizer = dni.crossings[crossing_name(index, tensor.node)]
            found[index + 1][1].extend(p for p in synthesizer.parameters() if p not in owner)
    for index, state in enumerate(dni.plan.states):  # their targets come when what they enter goes backward
        found[state.enters[-1]][1].extend(dni.crossings[time_name(index)].parameters())
    return found


def _own_parameters(net: fx.GraphModule, name: str, called: set[str]) -> Iterator[nn.Parameter]:
    """Of a module, without those of modules inside of it whose calls are nodes themselves."""
    module = net.get_submodule(name)
    yield from module.parameters(recurse=False)
    for child in dict(module.named_children()):
        if f"{name}.{child}" not in called:
            yield from _own_parameters(net, f"{name}.{child}", called)
