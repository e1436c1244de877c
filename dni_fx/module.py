"""What `transform` returns: a GraphModule with everything new under `net.dni`."""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import PythonCode

from dni_fx import ops
from dni_fx.calling import Calling
from dni_fx.errors import ContextError, DniFxError, SourceError
from dni_fx.passes.add_synthesizers import crossing_name
from dni_fx.passes.remove_dni import RemoveDni
from dni_fx.planning import Plan
from dni_fx.settings import Settings, loss_function
from dni_fx.synthesizers import Activation, Factory, LossHead, Outcome, check_labels, expand_context
from dni_fx.synthesizers.losses import Link

__all__ = [
    "Crossing",
    "DecoupledModule",
    "Interfaces",
    "adopt",
    "build_dni",
    "call_original",
    "hold_parameters",
    "plain",
    "rename",
    "retrace",
    "share_state",
]

MEASURE_EVERY = 20  # steps between two looks at the targets; a look costs a few passes over the tensor
MEASURES = ("cosine", "relative_error", "target_norm", "prediction_norm")


class Crossing(nn.Module):
    """One tensor at one cut: runs its synthesizer while training, and watches how good it is."""

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
        self.steps = 0
        device = activation.device
        self.register_buffer("measured", torch.full((len(MEASURES),), math.nan, device=device), persistent=False)
        # Running mean square of what is regressed; 0: nothing yet.
        self.register_buffer("square", torch.zeros((), device=device), persistent=self.scale == "rms")

    # fx.Graph.eliminate_dead_code must not remove a call whose result it believes unused.
    _is_impure = True

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor | None:
        """The prediction, shaped like `activation`; None in eval mode and where grad mode is off."""
        if not (self.training and torch.is_grad_enabled()):
            return None
        context = self._conditioned(activation, context)
        trains = self._begin()
        with contextlib.nullcontext() if trains else torch.no_grad():
            prediction = self._scaled(self.synthesizer(activation, context))
        if prediction.shape != activation.shape:
            raise DniFxError(
                f"synthesizer {type(self.synthesizer).__name__} returned shape {list(prediction.shape)} for an "
                f"activation of shape {list(activation.shape)}"
            )
        if trains and not torch.compiler.is_compiling():
            self._watch(prediction)
        return prediction

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
        """What the synthesizer says, in the units of the target; it learns in its own."""
        if self.scale == 1.0 or isinstance(self.synthesizer, LossHead):
            return raw
        rms = self.scale == "rms"
        scale = torch.where(self.square > 0, self.square.rsqrt(), 1.0) if rms else float(self.scale)
        said = raw.detach()
        # said / scale, with the slope of half (raw - scale * target)^2
        scaled: Tensor = raw * scale + said * (1 / scale - scale)
        return scaled.to(raw.dtype)

    def _watch(self, prediction: Tensor) -> None:
        look = (self.steps - 1) % (MEASURE_EVERY * self.every) == 0
        if (look or self.scale == "rms") and prediction.requires_grad:
            synthetic = prediction.detach() / ops.batch_size(prediction)
            prediction.register_hook(lambda error: self._hear(synthetic, error, look))

    def _hear(self, synthetic: Tensor, error: Tensor | None, look: bool) -> None:
        """`error` is synthetic - target, which is what the boundary sends to the synthesizer; None: dropped."""
        if error is None:
            return
        target = (synthetic - error).flatten().float()
        if self.scale == "rms":
            mean_square = (target * ops.batch_size(synthetic)).square().mean()
            mean_square = mean_square.to(self.square)
            self.square = torch.where(self.square > 0, self.square.lerp(mean_square, 0.01), mean_square)
        if look:
            synthetic, error = synthetic.flatten().float(), error.flatten().float()
            norms = target.dot(target).sqrt(), synthetic.dot(synthetic).sqrt()  # on a CPU faster than norm()
            cosine = target.dot(synthetic) / (norms[0] * norms[1]).clamp(min=torch.finfo(torch.float32).tiny)
            self.measured = torch.stack([cosine, error.dot(error).sqrt() / norms[0], *norms]).detach()


class Interfaces(nn.Module):
    """All that a rewrite adds to a model: the plan, a `Crossing` for each crossing tensor, the segments."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan

    @property
    def crossings(self) -> dict[str, Crossing]:
        """By name, as in `net.code`."""
        return {name: module for name, module in self.named_children() if isinstance(module, Crossing)}

    @property
    def synthesizers(self) -> dict[str, nn.Module]:
        """Synthesizers by the name of their crossing, as in `net.code`."""
        return {name: crossing.synthesizer for name, crossing in self.crossings.items()}

    def reset(self) -> None:
        """Drop the state that recurrent synthesizers carry from step to step: a new sequence begins."""
        for synthesizer in self.synthesizers.values():
            reset: Any = getattr(synthesizer, "reset", None)
            if reset is not None:
                reset()

    def metrics(self) -> dict[str, dict[str, float]]:
        """How well each synthesizer predicts its target, at the last step that was looked at (every twentieth).

        Returns:
            For each crossing: `cosine` between prediction and target, `relative_error` |g - target| / |target|,
            `target_norm` and `prediction_norm`, of the gradient of the mean loss; `steps`, the number of training steps
            so far; and `skipped`, how often a prediction or target of its cut was dropped, for it was not finite.
            Empty until a step has run; NaN where no target has come back.
        """
        found = {}
        for name, crossing in self.crossings.items():
            if crossing.steps:
                segment = self.get_submodule(f"segment{name.removeprefix('cut').split('_')[0]}")
                measured = dict(zip(MEASURES, crossing.measured.tolist(), strict=True))
                found[name] = measured | {"steps": crossing.steps, "skipped": int(segment.skipped)}  # type: ignore[arg-type]
        return found


class DecoupledModule(fx.GraphModule):
    """A GraphModule that survives copying and pickling whole.

    fx.GraphModule keeps only what its graph refers to; this keeps unused parameters, the model's containers,
    non-persistent buffers and node names too.
    """

    dni: Interfaces

    def dni_settings(self) -> dict[str, Any]:
        """What a saved class needs to be this one again, beside the graph: plain literals by attribute name.

        Raises:
            SourceError: If the graph reads what has no text form.
        """
        calling: Calling | None = self.__dict__.get("dni_calling")
        if calling is None:
            return {}
        original = self.__dict__["dni_original"]
        read = sorted({str(n.target) for n in self.graph.nodes if n.op == "get_attr"})
        constants = [name for name in read if not name.startswith("dni.") and not _has(original, name)]
        for name in constants:
            if not isinstance(getattr(self, name), Tensor):
                raise SourceError(f"the graph holds {name}, which cannot be written as source: train it without saving")
        modes = self.__dict__["dni_modes"]
        return {"dni_calling": calling.to_text(), "dni_modes": modes, "dni_constants": tuple(constants)}

    def dni_recall(self, settings: Mapping[str, Any]) -> None:
        """Take what `dni_settings` gave."""
        if "dni_calling" in settings:
            self.dni_flatten(Calling.from_text(settings["dni_calling"]), settings["dni_modes"])

    def dni_flatten(self, calling: Calling, modes: Mapping[str, bool]) -> None:
        """Say that the graph is flat, and how it is called.

        Args:
            modes: Modules that were captured in eval mode, by name.
        """
        autocast = any(node.target is torch.amp.autocast_mode._enter_autocast for node in self.graph.nodes)
        watched = [(name, module, modes.get(name, True)) for name, module in self.named_modules() if name]
        self.__dict__.update(dni_calling=calling, dni_modes=dict(modes), dni_watched=watched, dni_autocast=autocast)
        self.recompile()

    def recompile(self) -> PythonCode:
        code = super().recompile()
        if "dni_calling" in self.__dict__:
            cls: Any = type(self)
            cls.dni_flat = cls.forward
            cls.forward = _call_flat
        return code

    def train(self, mode: bool = True) -> "DecoupledModule":
        """As the model's own `train`, which may keep some of its modules in eval mode."""
        super().train(mode)
        original = self.__dict__.get("dni_original")
        if original is not None and type(original).train is not nn.Module.train:
            original.train(mode)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "DecoupledModule":
        result: DecoupledModule = _base(self)(nn.Module(), fx.Graph(), type(self).__name__)
        memo[id(self)] = result
        state = {k: v for k, v in self.__dict__.items() if k not in ("_graph", "_code")}
        result.__dict__.update(copy.deepcopy(state, memo))
        result.graph = copy.deepcopy(self.graph)
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        _, (body, import_block) = super().__reduce__()
        return _unpickle, (
            _base(self),
            type(self).__name__,
            body,
            import_block,
            [node.name for node in self.graph.nodes],
        )


def _call_flat(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Stands for `forward` where the graph is flat: takes and gives what the original model does.

    The graph holds for train mode alone: in eval mode the original runs.
    """
    context = {"dni_context": kwargs.pop("dni_context")} if "dni_context" in kwargs else {}
    if not self.training:
        return call_original(self, *args, **kwargs)
    for name, module, training in self.__dict__["dni_watched"]:
        if module.training != training:
            mode = "train" if module.training else "eval"
            raise DniFxError(
                f"{name} is in {mode} mode, but was captured in the other, which the front end export fixes: let the "
                'model\'s own train() set it, or use frontend="modules"'
            )
    calling: Calling = self.__dict__["dni_calling"]
    tensors = calling.flatten(self.__dict__["dni_original"].forward, args, kwargs)
    with _autocast_restored() if self.__dict__["dni_autocast"] else contextlib.nullcontext():
        return calling.unflatten(self.dni_flat(*tensors, **context))


@contextlib.contextmanager
def _autocast_restored() -> Iterator[None]:
    """An error inside of an autocast block of a graph, which two nodes enter and leave, must not leave it open."""
    devices = ("cpu", "cuda")
    before = [(torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in devices]
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    try:
        yield
    except BaseException:
        now = torch.autocast_increment_nesting()
        while now >= depth:
            now = torch.autocast_decrement_nesting()
        for device, (enabled, dtype) in zip(devices, before, strict=True):
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
        raise


def call_original(net: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Run the model that `net` was made from, on what `net` holds."""
    original: nn.Module = net.__dict__["dni_original"]
    share_state(net, original, without="dni")
    original.training = net.training
    result = original(*args, **kwargs)
    net._buffers.update(original._buffers)  # forward may have put others in their place
    return result


def _base(net: DecoupledModule) -> type[DecoupledModule]:
    """The class as it was written; fx makes one of its own for every graph."""
    return next(cls for cls in type(net).__mro__ if cls.__module__.startswith("dni_fx."))


def _unpickle(
    base: type[DecoupledModule], class_name: str, body: dict[str, Any], import_block: str, names: list[str]
) -> DecoupledModule:
    namespace: dict[str, Any] = {}
    exec(import_block + body["_code"], namespace)
    shell = nn.Module()
    shell.__dict__.update({k: v for k, v in body.items() if k != "_code"})
    graph = retrace(shell, namespace["forward"])
    rename(graph, names)
    result = base(nn.Module(), fx.Graph(), class_name)
    result.__dict__.update({k: v for k, v in body.items() if k != "_code"})
    result.graph = graph
    return result


class _Operators:
    """Stands for `torch` while generated code is traced: each call under `torch.ops` and `torch.amp` becomes one node.

    Those do not see proxies by themselves where they are inside of lists. For a function of the person's own that was
    not traced into, too.
    """

    def __init__(self, tracer: fx.Tracer, home: Any) -> None:
        self.tracer, self.home = tracer, home

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.home, name)
        return _Operators(self.tracer, found) if self.home is not torch or name in ("ops", "amp") else found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.tracer.create_proxy("call_function", self.home, args, kwargs)


class _AllLeaves(fx.Tracer):
    """Every module is a leaf, and every line that reads a parameter or buffer is one node."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names = names

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if isinstance(attr_val, Tensor) and id(attr_val) in self.names:
            return self.create_proxy("get_attr", self.names[id(attr_val)], (), {})
        return attr_val


def _skeleton(module: nn.Module) -> nn.Module:
    """The same tree of plain modules: the person's own may do more than call forward when they are called."""
    bare = nn.Module()
    bare._parameters, bare._buffers = dict(module._parameters), dict(module._buffers)
    bare.__dict__.update({name: value for name, value in vars(module).items() if isinstance(value, Tensor)})
    for name, child in module._modules.items():
        bare._modules[name] = child if child is None else _skeleton(child)
    return bare


def retrace(module: nn.Module, forward: Callable[..., Any]) -> fx.Graph:
    """The graph of generated code, for the modules and attributes of `module`."""
    state = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    tracer = _AllLeaves({id(tensor): name for name, tensor in reversed(state)})
    code: Any = forward
    functions = {k: _Operators(tracer, v) for k, v in code.__globals__.items() if isinstance(v, FunctionType)}
    names = {**code.__globals__, **functions, "torch": _Operators(tracer, torch)}
    traced = FunctionType(code.__code__, names, "forward", code.__defaults__)
    shell = type("Shell", (nn.Module,), {"forward": traced})()
    shell.__dict__.update(_skeleton(module).__dict__)
    graph = tracer.trace(shell)
    graph._tracer_cls = None
    return graph


def rename(graph: fx.Graph, names: list[str]) -> None:
    """Give a graph that was traced again from generated code the node names of the code."""
    for node in graph.nodes:  # out of the way first: a name may be taken by a later node
        node.name = f"dni_renaming_{node.name}"
    for node, name in zip(graph.nodes, names, strict=True):
        node.name = name


def adopt(
    model: nn.Module, graph: fx.Graph, holder: nn.Module | None = None, base: type[DecoupledModule] = DecoupledModule
) -> DecoupledModule:
    """A module of class `base` that runs `graph` on the very submodules, parameters and buffers of `model`.

    Args:
        holder: Where what the graph reads is found, if `model` has it not: constants that a capture made.
    """
    holder = model if holder is None else holder
    net = base(holder, graph, type(model).__name__)
    read = {str(n.target) for n in graph.nodes if n.op == "get_attr"}
    constants = {name: attrgetter(name)(holder) for name in read if not _has(model, name)}
    constants |= {k: v for k, v in net._buffers.items() if k not in model._buffers}
    share_state(model, net)
    for name, value in constants.items():
        flat = name.replace(".", "_")
        if isinstance(value, Tensor):
            net.register_buffer(flat, value.detach(), persistent=False)
        else:
            net.add_module(flat, value)
        for node in graph.nodes:
            if node.op == "get_attr" and node.target == name:
                node.target = flat
    net.training = model.training
    net.__dict__["dni_original"] = model
    return net


def _has(model: nn.Module, path: str) -> bool:
    try:
        attrgetter(path)(model)
    except AttributeError:
        return False
    return True


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
    by_name = {node.name: node for node in net.graph.nodes}
    for index in range(len(dni.plan.cuts)):
        used: dict[int, nn.Parameter] = {}
        for name in dni.plan.segments[index].nodes:
            node = by_name[name]
            if node.op == "call_module":
                used.update({id(p): p for p in net.get_submodule(str(node.target)).parameters()})
            for source in node.all_input_nodes:
                value = attrgetter(str(source.target))(net) if source.op == "get_attr" else None
                if isinstance(value, nn.Parameter):
                    used[id(value)] = value
        segment = dni.get_submodule(f"segment{index}")
        assert isinstance(segment, ops.Segment)
        segment.hold(used.values())


def plain(net: DecoupledModule) -> DecoupledModule:
    """The graph that was captured, on the parameters of `net`, without all that the rewrite added."""
    result: DecoupledModule = _base(net)(nn.Module(), fx.Graph(), type(net).__name__)
    share_state(net, result, without="dni")
    graph = fx.Graph()
    graph.output(graph.graph_copy(net.graph, {})).meta = dict(net.graph.output_node().meta)
    result.graph = graph
    RemoveDni()(result)
    result.graph.lint()
    kept = ("dni_calling", "dni_modes", "dni_watched", "dni_autocast", "dni_original", "dni_outputs", "dni_written")
    result.__dict__.update({key: net.__dict__[key] for key in kept if key in net.__dict__})
    result.__dict__.setdefault("dni_original", None)
    result.recompile()
    result.training = net.training
    return result


def share_state(source: nn.Module, destination: nn.Module, *, without: str = "") -> None:
    """Make `destination` hold the very parameters, buffers and children that `source` has, in their order.

    Args:
        without: A child that is left out.
    """
    for kind in ("_parameters", "_buffers", "_modules"):
        held = getattr(destination, kind)
        wanted = {name: value for name, value in getattr(source, kind).items() if name != without}
        # Most often nothing has changed: then nothing is touched, and threads may run the same model in eval mode.
        if list(held) != list(wanted) or any(held[name] is not wanted[name] for name in wanted):
            held.clear()
            held.update(wanted)
    destination._non_persistent_buffers_set = set(source._non_persistent_buffers_set)
