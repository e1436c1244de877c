"""What `transform` returns: a GraphModule with everything new under `net.dni`."""

import copy
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph_module import reduce_graph_module

from dni_fx import ops
from dni_fx.errors import ContextError, DniFxError
from dni_fx.passes.add_synthesizers import crossing_name
from dni_fx.passes.remove_dni import RemoveDni
from dni_fx.planning import Plan
from dni_fx.synthesizers import Activation, Factory, expand_context

__all__ = [
    "DNI",
    "Crossing",
    "DecoupledModule",
    "adopt",
    "build_dni",
    "hold_parameters",
    "plain",
    "rename",
    "share_state",
]

MEASURE_EVERY = 10  # steps between two looks at the targets; a look costs three passes over the tensor


class Crossing(nn.Module):
    """One tensor at one cut: runs its synthesizer while training, and watches how good it is."""

    def __init__(
        self, synthesizer: nn.Module, activation: Activation, *, classes: int | None, context_size: int | None
    ) -> None:
        super().__init__()
        self.synthesizer = synthesizer
        self.axis = activation.axis
        self.classes = classes
        self.context_size = classes if classes is not None else context_size
        self.steps = 0
        self.register_buffer("measured", torch.zeros(2, device=activation.device), persistent=False)

    # fx.Graph.eliminate_dead_code must not remove a call whose result it believes unused.
    _is_impure = True

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor | None:
        """The prediction, shaped like `activation`; None in eval mode and where grad mode is off."""
        if not (self.training and torch.is_grad_enabled()):
            return None
        if self.context_size is not None:
            if context is None:
                what = "labels" if self.classes is not None else "a context vector a sample"
                raise ContextError(
                    f"this model is conditioned on {what}: while training, call net(..., dni_context=...) "
                    "(in eval mode and under no_grad it is not needed)"
                )
            context = expand_context(context, activation, self.axis, classes=self.classes, size=self.context_size)
        prediction: Tensor = self.synthesizer(activation, context)
        if prediction.shape != activation.shape:
            raise DniFxError(
                f"synthesizer {type(self.synthesizer).__name__} returned shape {list(prediction.shape)} for an "
                f"activation of shape {list(activation.shape)}"
            )
        if not torch.compiler.is_compiling():
            self._watch(prediction)
        return prediction

    def _watch(self, prediction: Tensor) -> None:
        self.steps += 1
        if self.steps % MEASURE_EVERY == 1 and prediction.requires_grad:
            synthetic = prediction.detach() / ops.batch_size(prediction)
            prediction.register_hook(lambda error: self._measure(synthetic, error))

    def _measure(self, synthetic: Tensor, error: Tensor) -> None:
        """`error` is synthetic - target, which is what the boundary sends to the synthesizer."""
        target = (synthetic - error).flatten().float()
        cosine = torch.cosine_similarity(synthetic.flatten().float(), target, dim=0)
        relative = error.float().norm() / target.norm()
        self.measured = torch.stack([cosine, relative]).detach()


class DNI(nn.Module):
    """All that a rewrite adds to a model: the plan, a `Crossing` for each crossing tensor, the segments."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan

    @property
    def synthesizers(self) -> dict[str, nn.Module]:
        """Synthesizers by the name of their crossing, as in `net.code`."""
        return {name: m.synthesizer for name, m in self.named_children() if isinstance(m, Crossing)}

    def metrics(self) -> dict[str, dict[str, float]]:
        """How well each synthesizer predicts its target, at the last step that was looked at (every tenth).

        Returns:
            For each crossing: `cosine` between prediction and target, `relative_error` |g - target| / |target|,
            and `steps`, the number of training steps so far. Empty until a backward pass has run.
        """
        return {
            name: {"cosine": float(m.measured[0]), "relative_error": float(m.measured[1]), "steps": m.steps}
            for name, m in self.named_children()
            if isinstance(m, Crossing) and m.steps
        }


class DecoupledModule(fx.GraphModule):
    """A GraphModule that survives copying and pickling whole.

    fx.GraphModule keeps only what its graph refers to; this keeps unused parameters, the model's containers,
    non-persistent buffers and node names too.
    """

    dni: DNI

    def __deepcopy__(self, memo: dict[int, Any]) -> "DecoupledModule":
        result = DecoupledModule(nn.Module(), fx.Graph(), type(self).__name__)
        memo[id(self)] = result
        state = {k: v for k, v in self.__dict__.items() if k not in ("_graph", "_code")}
        result.__dict__.update(copy.deepcopy(state, memo))
        result.graph = copy.deepcopy(self.graph)
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        _, (body, import_block) = super().__reduce__()
        return _unpickle, (type(self).__name__, body, import_block, [node.name for node in self.graph.nodes])


def _unpickle(class_name: str, body: dict[str, Any], import_block: str, names: list[str]) -> DecoupledModule:
    plain = reduce_graph_module(dict(body), import_block)
    rename(plain.graph, names)  # type: ignore[arg-type]
    result = DecoupledModule(nn.Module(), fx.Graph(), class_name)
    result.__dict__.update({k: v for k, v in body.items() if k != "_code"})
    result.graph = plain.graph  # type: ignore[assignment]
    return result


def rename(graph: fx.Graph, names: list[str]) -> None:
    """Give a graph that was traced again from generated code the node names of the code."""
    for node in graph.nodes:  # out of the way first: a name may be taken by a later node
        node.name = f"dni_renaming_{node.name}"
    for node, name in zip(graph.nodes, names, strict=True):
        node.name = name


def adopt(model: nn.Module, graph: fx.Graph) -> DecoupledModule:
    """A module that runs `graph` on the very submodules, parameters and buffers of `model`."""
    net = DecoupledModule(model, graph, type(model).__name__)
    constants = {k: v for k, v in net._buffers.items() if k not in model._buffers}
    share_state(model, net)
    for name, value in constants.items():  # tensors that the trace found in the code
        net.register_buffer(name, value, persistent=False)
    net.training = model.training
    net.__dict__["dni_original"] = model
    return net


def build_dni(plan: Plan, factories: Mapping[str, Factory], *, device: torch.device | str = "cpu") -> DNI:
    """The submodule `dni` for a plan that says how it is rewritten; its segments hold no parameters yet.

    Args:
        factories: What makes the synthesizer of each crossing.
    """
    assert plan.rewrite is not None
    dni = DNI(plan)
    for index, cut in enumerate(plan.cuts):
        for tensor in cut.tensors:
            name = crossing_name(index, tensor.node)
            dtype = getattr(torch, tensor.dtype)
            axis = tensor.axis % len(tensor.shape)
            activation = Activation(tensor.shape, dtype, torch.device(device), axis)
            settings = plan.rewrite
            made = factories[name](activation, settings.classes or settings.context_size or 0)
            if not isinstance(made, nn.Module):
                raise DniFxError(f"the synthesizer for {name} is a {type(made).__name__}, not an nn.Module")
            made.to(device=activation.device, dtype=dtype)
            crossing = Crossing(made, activation, classes=settings.classes, context_size=settings.context_size)
            dni.add_module(name, crossing)
        dni.add_module(f"segment{index}", ops.Segment())
    return dni


def hold_parameters(net: fx.GraphModule, dni: DNI) -> None:
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
    result = DecoupledModule(nn.Module(), fx.Graph(), type(net).__name__)
    share_state(net, result, without="dni")
    graph = fx.Graph()
    graph.output(graph.graph_copy(net.graph, {}))
    result.graph = graph
    RemoveDni()(result)
    result.graph.lint()
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
        held.clear()
        held.update({name: value for name, value in getattr(source, kind).items() if name != without})
    destination._non_persistent_buffers_set = set(source._non_persistent_buffers_set)
