"""What the checks share: a net whose synthesizers are told what to say, steps of it, and how gradients are compared."""

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from dni_fx import api, costs, hooking, meta, ops
from dni_fx.errors import DniFxError
from dni_fx.inputs import Inputs, tensors_in
from dni_fx.interfaces import Crossing, Interfaces
from dni_fx.module import DecoupledModule, plain
from dni_fx.passes.add_synthesizers import crossing_name
from dni_fx.passes.add_time_cuts import time_name
from dni_fx.planning import StateTensor
from dni_fx.preserve import in_train_mode, preserved, seed
from dni_fx.recurrent import TimeCut, add_time_cuts
from dni_fx.settings import Settings
from dni_fx.synthesizers import Activation, Synthesizer
from dni_fx.windows import places

__all__ = [
    "RATE",
    "SEED",
    "Step",
    "Subject",
    "Told",
    "call",
    "close",
    "context_of",
    "forget",
    "gradients_of",
    "in_float64",
    "loss_of",
    "named",
    "outputs_of",
    "own",
    "step",
    "stepped",
    "synthesizers_of",
    "uncut",
]

# Of a gradient's largest entry. Models that compute in float32 inside differ by more than float64 resolves.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3, torch.complex64: 2e-3}
TOLERANCE |= {torch.float16: 5e-2, torch.bfloat16: 5e-2}
SEED = 7_302_516_490
RATE = 1e-3


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


@dataclass(frozen=True)
class Step:
    """One training step: outputs, and gradients by parameter."""

    outputs: list[Tensor]
    buffers: dict[str, Tensor]
    gradients: dict[str, Tensor]
    narrow: bool  # something was computed in 16 bits


class Narrow(TorchDispatchMode):
    """Sees whether anything is computed in 16 bits: an autocast block may be hidden in any module."""

    seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = pytree.tree_leaves(result)
        self.seen |= any(isinstance(t, Tensor) and t.dtype in (torch.float16, torch.bfloat16) for t in leaves)
        return result


class Subject:
    """A copy of the net, and one in float64; backpropagation's gradients; the true synthetic gradients."""

    def __init__(self, net: DecoupledModule, inputs: Inputs) -> None:
        self.net, self.inputs = net, inputs
        original = net.__dict__.get("dni_original")
        self.keys = list((original if original is not None else plain(net)).state_dict())
        self.model = api.restore(net)
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
            made = api.rewrite(captured, self.exact.dni.plan, Told, Settings(unlock=unlock, mix=mix))
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
        told = ops.Segment(mix)
        told.hold(segment.__dict__["held"])
        net.dni.add_module(f"segment{index}", told)
    states = [time_name(index) for index in range(len(net.dni.plan.states))]
    if states:
        device = net.dni.crossings[states[0]].measured.device
        add_time_cuts(net.dni, dict.fromkeys(states, Told), Settings(), device=device)


def uncut(net: DecoupledModule, inputs: Inputs) -> DecoupledModule:
    """The captured graph, annotated."""
    if isinstance(net, hooking.HookedModule):
        return hooking.capture(api.restore(net), inputs)
    graph = plain(net)
    if any("dni" not in node.meta for node in graph.graph.nodes):  # it was loaded from a folder
        costs.annotate(graph, inputs)
    for node in graph.graph.nodes:
        node.meta["dni"] = replace(meta.of(node), segment=None)
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


def step(
    net: nn.Module,
    inputs: Inputs,
    context: Mapping[str, Tensor] | None = None,
    state: Sequence[StateTensor] = (),
) -> Step:
    """Run forward and backward from fixed random output gradients; leave no trace but in the result.

    Args:
        state: Outputs that get no gradient.
    """
    with preserved(net):
        return stepped(net, inputs, context, state)


def stepped(
    net: nn.Module, inputs: Inputs, context: Mapping[str, Tensor] | None = None, state: Sequence[StateTensor] = ()
) -> Step:
    in_train_mode(net)
    net.zero_grad()
    forget(net)
    seed(SEED)
    with Narrow() as narrow:  # type: ignore[no-untyped-call]
        result = call(net, inputs.map(torch.detach), **(context or {}))
    outputs = tensors_in(result)
    torch.autograd.backward(*loss_of(outputs, set(places(state, result))))
    gradients = gradients_of(net)
    net.zero_grad()
    buffers = {n: b.detach().clone() for n, b in net.named_buffers() if not n.startswith("dni.")}
    return Step([o.detach() for o in outputs], buffers, gradients, narrow.seen)


def forget(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, TimeCut):
            module.forget()
        if isinstance(module, Interfaces) and module.replay is not None:
            module.replay.forget()


def loss_of(outputs: list[Tensor], without: Set[int] = frozenset(), number: int = SEED) -> tuple[Any, Any]:
    """Where a backward pass begins, and the gradients that it begins with."""
    heads = [o for i, o in enumerate(outputs) if o.requires_grad and i not in without]
    seed(number)
    return heads, [torch.randn_like(h) / ops.batch_size(h) for h in heads]


def gradients_of(net: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad for n, p in net.named_parameters() if p.grad is not None}


def outputs_of(net: nn.Module, inputs: Inputs, **context: Any) -> list[Tensor]:
    return tensors_in(call(net, inputs.map(torch.detach), **context))


def call(net: nn.Module, inputs: Inputs, **context: Any) -> Any:
    fresh = inputs.map(torch.clone)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return net(*fresh.args, **fresh.kwargs, **context)


def context_of(net: DecoupledModule, inputs: Inputs) -> dict[str, Tensor]:
    """Labels, or a vector, for a net that is conditioned."""
    settings = net.dni.plan.rewrite
    assert settings is not None
    rows = ops.batch_size(inputs.tensors()[0]) if inputs.tensors() else 1
    if settings.classes is not None:
        return {"dni_context": torch.arange(rows) % settings.classes}
    return {"dni_context": torch.ones(rows, settings.context_size)} if settings.context_size else {}


def own(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: g for name, g in gradients.items() if not name.startswith("dni.")}


# ----------------------------------------------------------------------------------------------- comparing
def close(got: dict[str, Tensor], expected: dict[str, Tensor], *, narrow: bool = False) -> tuple[bool, str]:
    """Whether two sets of tensors agree: the largest difference, as a share of the tensor's largest entry.

    Args:
        narrow: They were computed in 16 bits, whatever they are now.
    """
    got, expected = _numbers(got), _numbers(expected)
    missing = sorted(n for n in got.keys() ^ expected.keys() if (got | expected)[n].any())
    if missing:
        return False, f"{missing[0]} is in one of them only"
    largest = max((float(t.abs().max()) for t in expected.values() if t.numel()), default=0.0)
    worst, where, dtypes = 0.0, "", {torch.bfloat16 if narrow else torch.float64}
    for name in (name for name in expected if name in got):
        one, other = got[name], expected[name]
        if one.shape != other.shape:
            return False, f"{name} has shape {list(one.shape)}, not {list(other.shape)}"
        dtypes.add(other.dtype)
        if not one.numel() or torch.equal(one, other):
            continue
        error = float((one - other).abs().max() / (other.abs().max() + 1e-3 * largest))
        if not error < math.inf:
            return False, f"{name} is not finite"
        if error > worst:
            worst, where = error, f" at {name}"
    tolerance = max(TOLERANCE.get(dtype, 0.0) for dtype in dtypes)
    return worst <= tolerance, f"off by {worst:.1e}{where}" if worst else "exact"


def named(outputs: list[Tensor]) -> dict[str, Tensor]:
    return {f"output {i}": o.detach() for i, o in enumerate(outputs)}


def _numbers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Integers and truth values as float64: they have no differences otherwise."""
    inexact = {name: t.is_floating_point() or t.is_complex() for name, t in tensors.items()}
    return {name: t if inexact[name] else t.double() for name, t in tensors.items()}
