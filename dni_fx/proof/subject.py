"""A net under proof: copies of it whose synthesizers give gradients from a script."""

import copy
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dni_fx import ops
from dni_fx.capture import annotate, capture_by_modules
from dni_fx.compiler import restore, rewrite
from dni_fx.errors import DniFxError
from dni_fx.graph import record_of
from dni_fx.model import Inputs
from dni_fx.plans import crossing_name, time_name
from dni_fx.proof.step import step
from dni_fx.runtime import Crossing, DecoupledModule, HookedModule, add_time_cuts, plain
from dni_fx.settings import Settings
from dni_fx.synthesizers import Activation, Synthesizer

__all__ = ["Subject", "Told", "in_float64", "synthesizers_of", "uncut"]


class Told(Synthesizer):
    """Says what it was told, and nothing of its own; keeps the target that came back."""

    def __init__(self, activation: Activation, context_size: int = 0) -> None:
        super().__init__(activation, context_size)
        self.told: Tensor | None = None
        self.heard: Any = SimpleNamespace(target=None)  # no plain attribute: those are put back after every step
        self.slope = nn.Parameter(torch.zeros(()))  # a synthesizer without parameters gets no target

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
        told = torch.zeros_like(activation) if self.told is None else self.told
        prediction = told + self.slope * activation
        synthetic = told / ops.batch_size(told)
        heard = self.heard
        if not prediction.requires_grad:  # at the end of a window
            return prediction
        prediction.register_hook(lambda error: setattr(heard, "target", (synthetic - error).detach()))
        return prediction


class Subject:
    """A copy of the net, and one in float64; backpropagation's gradients; the true synthetic gradients."""

    def __init__(self, net: DecoupledModule, inputs: Inputs) -> None:
        self.net, self.inputs = net, inputs
        original = net.__dict__.get("dni_original")
        self.keys = list((original if original is not None else plain(net)).state_dict())
        self.model = restore(net)
        assert net.dni.plan.rewrite is not None
        self.unlock = net.dni.plan.rewrite.unlock
        self.exact, self.precise = in_float64(net, inputs)
        self.tensors = [tensor for state in net.dni.plan.states for tensor in state.tensors]
        self.backprop = step(uncut(self.exact, self.precise), self.precise, state=self.tensors)
        through = self.told("none", mix=1.0)
        self.through = step(through, self.precise)
        if not self.backprop.gradients:
            raise DniFxError("the model gives no tensor that carries gradient to a parameter")
        heard = {name: told.heard.target for name, told in synthesizers_of(through)}
        self.truth = {name: target for name, target in heard.items() if target is not None}

    @property
    def dtype(self) -> torch.dtype:
        return next((o.dtype for o in self.backprop.outputs), torch.float32)

    def told(self, unlock: str, say: Callable[[str, Tensor], Tensor] | None = None, mix: float = 0.0) -> Any:
        """The net with synthesizers that say what `say` makes of the true gradient; for other settings, made anew."""
        if unlock == self.unlock:
            made = copy.deepcopy(self.exact)
            _replace_synthesizers(made, mix)
        else:
            captured = uncut(self.exact, self.precise)
            made = rewrite(captured, self.exact.dni.plan, Told, Settings(unlock=unlock, mix=mix))
        for name, synthesizer in synthesizers_of(made):
            synthesizer.double()  # its one parameter, whatever dtype the model had when it was planned
            if say is not None and name in self.truth:
                synthesizer.told = say(name, self.truth[name] * ops.batch_size(self.truth[name]))
        return made


def synthesizers_of(net: DecoupledModule) -> list[tuple[str, Told]]:
    return [(n, c.synthesizer) for n, c in net.dni.named_children() if isinstance(c, Crossing)]  # type: ignore[misc]


def _replace_synthesizers(net: DecoupledModule, mix: float) -> None:
    """Told ones in their place, trained in the plainest way."""
    net.dni.replay = None
    for index, (cut, segment) in enumerate(zip(net.dni.plan.cuts, net.dni.segments, strict=True)):
        for tensor in cut.tensors:
            name = crossing_name(index, tensor.node)
            device = net.dni.crossings[name].measured.device
            activation = Activation(tensor.shape, getattr(torch, tensor.dtype), device, tensor.axis)
            net.dni.add_module(name, Crossing(Told(activation).to(device), activation, Settings()))
        told = ops.Segment(mix, index=index)
        told.hold(segment.held)
        net.dni.add_module(f"segment{index}", told)
    states = [time_name(index) for index in range(len(net.dni.plan.states))]
    if states:
        device = net.dni.crossings[states[0]].measured.device
        add_time_cuts(net.dni, dict.fromkeys(states, Told), Settings(), device=device)


def uncut(net: DecoupledModule, inputs: Inputs) -> DecoupledModule:
    """The captured graph, annotated."""
    if isinstance(net, HookedModule):
        return capture_by_modules(restore(net), inputs)
    graph = plain(net)
    if any("dni" not in node.meta for node in graph.graph.nodes):  # it was loaded from a folder
        annotate(graph, inputs)
    for node in graph.graph.nodes:
        node.meta["dni"] = replace(record_of(node), segment=None)
    return graph


def in_float64(net: DecoupledModule, inputs: Inputs) -> tuple[DecoupledModule, Inputs]:
    """Copies in float64; as they are if the model has its dtype built in."""
    exact = copy.deepcopy(net).double()
    precise = inputs.map(lambda t: t.double() if t.is_floating_point() else t)
    for node in exact.graph.nodes:  # dtypes that a capture wrote down
        node.args, node.kwargs = pytree.tree_map(_widened, (node.args, node.kwargs))
    exact.recompile()
    try:
        outputs = step(uncut(exact, precise), precise).outputs
    except Exception:
        return net, inputs
    return (exact, precise) if all(o.dtype in (torch.float64, torch.complex128) for o in outputs) else (net, inputs)


def _widened(value: Any) -> Any:
    narrow = isinstance(value, torch.dtype) and value in (torch.float32, torch.float16, torch.bfloat16)
    return torch.float64 if narrow else value
