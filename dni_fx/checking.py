"""Prove a rewrite: what `dni-fx check` prints and the tests call.

The synthesizers are replaced by ones that are told what to say. Told the true gradients, the cut network must train
as backpropagation does; told nothing, no gradient may reach the parameters below a cut.
"""

import copy
import math
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from dni_fx import api, artifact, costs, hooking, meta, ops
from dni_fx.errors import DniFxError, SourceError, first_line
from dni_fx.inputs import Inputs, given, tensors_in
from dni_fx.interfaces import Crossing, Interfaces
from dni_fx.module import DecoupledModule, plain
from dni_fx.passes.add_synthesizers import crossing_name
from dni_fx.passes.add_time_cuts import time_name
from dni_fx.planning import StateTensor
from dni_fx.preserve import in_train_mode, preserved, seed
from dni_fx.recurrent import TimeCut, add_time_cuts
from dni_fx.settings import Settings
from dni_fx.synthesizers import REGISTRY, Activation, Synthesizer
from dni_fx.windows import next_window, places

__all__ = ["Check", "Report", "Told", "check"]

# Of a gradient's largest entry. Models that compute in float32 inside differ by more than float64 resolves.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3, torch.complex64: 2e-3}
_TOLERANCE |= {torch.float16: 5e-2, torch.bfloat16: 5e-2}
_SEED = 7_302_516_490
_RATE = 1e-3


@dataclass(frozen=True)
class Check:
    """One property of a rewrite."""

    name: str
    passed: bool
    figure: str


@dataclass(frozen=True)
class Report:
    """All properties of a rewrite; true where every one holds."""

    checks: tuple[Check, ...]

    def __bool__(self) -> bool:
        return all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        return {"passed": bool(self), "checks": [asdict(check) for check in self.checks]}


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


def check(net: DecoupledModule, inputs: Any, *, kwargs: dict[str, Any] | None = None) -> Report:
    """Check that a rewritten model is the same network, decoupled.

    The net, its weights, gradients and buffers are left as they are.

    Args:
        net: What `dni_fx.transform` or `dni_fx.load` returned.
        inputs: A tensor or a tuple of positional arguments, batch first, any size that the model takes.
        kwargs: Keyword arguments of the same call.

    Returns:
        A report that is true if every check holds: outputs in eval mode and in train mode; gradients with true
        synthetic gradients (in float64 where the model runs in it); isolation; unlock "none" against "backward";
        keys of the state_dict; save and load; that steps move every parameter that backpropagation moves; and with a
        cut in time, what goes from one window to the next, in two windows of these inputs.

    Raises:
        DniFxError: If `net` was not made by dni-fx, or does not run on the inputs.
    """
    if not isinstance(net, DecoupledModule) or not hasattr(net, "dni"):
        raise DniFxError(f"expected what dni_fx.transform returned, not a {type(net).__name__}")
    example = inputs if isinstance(inputs, Inputs) else given(inputs, kwargs)
    with preserved(net), torch.enable_grad():
        try:
            _detach_attributes(net)
            state = _State(copy.deepcopy(net), example)
        except DniFxError:
            raise
        except Exception as error:
            raise DniFxError(f"the model cannot be checked on these inputs: {first_line(error)}") from None
        checks = _CHECKS | _IN_TIME if net.dni.plan.states else _CHECKS
        return Report(tuple(Check(name, *_outcome(one, state)) for name, one in checks.items()))


def _detach_attributes(net: nn.Module) -> None:
    """Tensors of the last step that hang at modules, such as a state or a loss, cannot be copied with their graph."""
    original = net.__dict__.get("dni_original")
    for module in [*net.modules(), *([original] if original is not None else [])]:
        for name, value in list(vars(module).items()):
            tensors = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
            if any(tensor.grad_fn is not None for tensor in tensors):  # put back with all the other attributes
                detached = pytree.tree_map_only(Tensor, lambda t: t if t.grad_fn is None else t.detach(), value)
                module.__dict__[name] = detached


def _outcome(one: "Callable[[_State], tuple[bool, str]]", state: "_State") -> tuple[bool, str]:
    try:
        return one(state)
    except Exception as error:
        return False, f"{type(error).__name__}: {first_line(error)}"


# ------------------------------------------------------------------------------------ what the checks share
@dataclass(frozen=True)
class _Step:
    """One training step: outputs, and gradients by parameter."""

    outputs: list[Tensor]
    buffers: dict[str, Tensor]
    gradients: dict[str, Tensor]
    narrow: bool  # something was computed in 16 bits


class _Narrow(TorchDispatchMode):
    """Sees whether anything is computed in 16 bits: an autocast block may be hidden in any module."""

    seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = pytree.tree_leaves(result)
        self.seen |= any(isinstance(t, Tensor) and t.dtype in (torch.float16, torch.bfloat16) for t in leaves)
        return result


class _State:
    """A copy of the net, and one in float64; backpropagation's gradients; the true synthetic gradients."""

    def __init__(self, net: DecoupledModule, inputs: Inputs) -> None:
        self.net, self.inputs = net, inputs
        original = net.__dict__.get("dni_original")
        self.keys = list((original if original is not None else plain(net)).state_dict())
        self.model = api.restore(net)
        assert net.dni.plan.rewrite is not None
        self.unlock = net.dni.plan.rewrite.unlock
        self.exact, self.precise = _in_float64(net, inputs)
        self.tensors = [tensor for state in net.dni.plan.states for tensor in state.tensors]
        self.backprop = _step(_uncut(self.exact, self.precise), self.precise, state=self.tensors)
        through = self.told("none", mix=1.0)
        self.through = _step(through, self.precise)
        if not self.backprop.gradients:
            raise DniFxError("the model gives no tensor that carries gradient to a parameter")
        heard = {name: told.heard.target for name, told in _synthesizers(through)}
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
            uncut = _uncut(self.exact, self.precise)
            made = api.rewrite(uncut, self.exact.dni.plan, Told, Settings(unlock=unlock, mix=mix))
        for name, synthesizer in _synthesizers(made):
            synthesizer.double()  # its one parameter, whatever dtype the model had when it was planned
            if say is not None and name in self.truth:
                synthesizer.told = say(name, self.truth[name] * ops.batch_size(self.truth[name]))
        return made


def _synthesizers(net: DecoupledModule) -> list[tuple[str, Told]]:
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


def _uncut(net: DecoupledModule, inputs: Inputs) -> DecoupledModule:
    """The captured graph, annotated."""
    if isinstance(net, hooking.HookedModule):
        return hooking.capture(api.restore(net), inputs)
    graph = plain(net)
    if any("dni" not in node.meta for node in graph.graph.nodes):  # it was loaded from a folder
        costs.annotate(graph, inputs)
    for node in graph.graph.nodes:
        node.meta["dni"] = replace(meta.of(node), segment=None)
    return graph


def _in_float64(net: DecoupledModule, inputs: Inputs) -> tuple[DecoupledModule, Inputs]:
    """Copies in float64; as they are if the model has its dtype built in."""
    exact = copy.deepcopy(net).double()
    precise = inputs.map(lambda t: t.double() if t.is_floating_point() else t)
    for node in exact.graph.nodes:  # dtypes that a capture wrote down
        node.args, node.kwargs = pytree.tree_map(_widened, (node.args, node.kwargs))
    exact.recompile()
    try:
        outputs = _step(_uncut(exact, precise), precise).outputs
    except Exception:
        return net, inputs
    return (exact, precise) if all(o.dtype in (torch.float64, torch.complex128) for o in outputs) else (net, inputs)


def _widened(value: Any) -> Any:
    narrow = isinstance(value, torch.dtype) and value in (torch.float32, torch.float16, torch.bfloat16)
    return torch.float64 if narrow else value


def _step(
    net: nn.Module,
    inputs: Inputs,
    context: Mapping[str, Tensor] | None = None,
    state: Sequence[StateTensor] = (),
) -> _Step:
    """Run forward and backward from fixed random output gradients; leave no trace but in the result.

    Args:
        state: Outputs that get no gradient.
    """
    with preserved(net):
        return _stepped(net, inputs, context, state)


def _stepped(
    net: nn.Module, inputs: Inputs, context: Mapping[str, Tensor] | None = None, state: Sequence[StateTensor] = ()
) -> _Step:
    in_train_mode(net)
    net.zero_grad()
    _forget(net)
    seed(_SEED)
    with _Narrow() as narrow:  # type: ignore[no-untyped-call]
        result = _call(net, inputs.map(torch.detach), **(context or {}))
    outputs = tensors_in(result)
    torch.autograd.backward(*_loss(outputs, set(places(state, result))))
    gradients = _gradients(net)
    net.zero_grad()
    buffers = {n: b.detach().clone() for n, b in net.named_buffers() if not n.startswith("dni.")}
    return _Step([o.detach() for o in outputs], buffers, gradients, narrow.seen)


def _forget(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, TimeCut):
            module.forget()
        if isinstance(module, Interfaces) and module.replay is not None:
            module.replay.forget()


def _loss(outputs: list[Tensor], without: Set[int] = frozenset(), number: int = _SEED) -> tuple[Any, Any]:
    """Where a backward pass begins, and the gradients that it begins with."""
    heads = [o for i, o in enumerate(outputs) if o.requires_grad and i not in without]
    seed(number)
    return heads, [torch.randn_like(h) / ops.batch_size(h) for h in heads]


def _gradients(net: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad for n, p in net.named_parameters() if p.grad is not None}


def _outputs(net: nn.Module, inputs: Inputs, **context: Any) -> list[Tensor]:
    return tensors_in(_call(net, inputs.map(torch.detach), **context))


def _call(net: nn.Module, inputs: Inputs, **context: Any) -> Any:
    fresh = inputs.map(torch.clone)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return net(*fresh.args, **fresh.kwargs, **context)


def _context(net: DecoupledModule, inputs: Inputs) -> dict[str, Tensor]:
    """Labels, or a vector, for a net that is conditioned."""
    settings = net.dni.plan.rewrite
    assert settings is not None
    rows = ops.batch_size(inputs.tensors()[0]) if inputs.tensors() else 1
    if settings.classes is not None:
        return {"dni_context": torch.arange(rows) % settings.classes}
    return {"dni_context": torch.ones(rows, settings.context_size)} if settings.context_size else {}


# ----------------------------------------------------------------------------------------------- comparing
def _close(got: dict[str, Tensor], expected: dict[str, Tensor], *, narrow: bool = False) -> tuple[bool, str]:
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
    tolerance = max(_TOLERANCE.get(dtype, 0.0) for dtype in dtypes)
    return worst <= tolerance, f"off by {worst:.1e}{where}" if worst else "exact"


def _named(outputs: list[Tensor]) -> dict[str, Tensor]:
    return {f"output {i}": o.detach() for i, o in enumerate(outputs)}


def _numbers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Integers and truth values as float64: they have no differences otherwise."""
    inexact = {name: t.is_floating_point() or t.is_complex() for name, t in tensors.items()}
    return {name: t if inexact[name] else t.double() for name, t in tensors.items()}


# -------------------------------------------------------------------------------------------- the checks
def _eval_outputs(state: _State) -> tuple[bool, str]:
    found = []
    for module in (state.net, state.model):
        with preserved(module), torch.no_grad():
            seed(_SEED)
            found.append(_named(_outputs(module.eval(), state.inputs)))
    return _close(*found)


def _train_step(state: _State) -> tuple[bool, str]:
    """Outputs and buffers of the net, and gradients of the captured graph: those of the model as it was given."""
    captured = _step(_uncut(state.net, state.inputs), state.inputs)
    model = _step(state.model, state.inputs)
    cut = _step(state.net, state.inputs, _context(state.net, state.inputs))
    wanted = {name: b for name, b in model.buffers.items() if name in cut.buffers}
    passed, figure = _close(
        _named(cut.outputs) | {name: cut.buffers[name] for name in wanted},
        _named(model.outputs) | wanted,
        narrow=model.narrow,
    )
    return _close(captured.gradients, model.gradients, narrow=model.narrow) if passed else (passed, figure)


def _oracle(state: _State) -> tuple[bool, str]:
    ours = _step(state.told(state.unlock, lambda _, truth: truth), state.precise)
    for got in (state.through, ours):
        passed, figure = _close(_own(got.gradients), state.backprop.gradients, narrow=got.narrow)
        if not passed:
            break
    return passed, f"{str(state.dtype).removeprefix('torch.')}: {figure}"


def _isolation(state: _State) -> tuple[bool, str]:
    """With zero synthetic gradients only what is above the last cut gets a gradient, and its true one."""
    cut = state.told(state.unlock)
    above, below = _used_above_and_below(state)
    found = _own(_step(cut, state.precise).gradients)
    leaking = [n for n in sorted(below - above) if n in found and found[n].any()]
    if leaking:
        return False, f"{leaking[0]} gets a gradient"
    alone = above - below
    passed, figure = _close(
        {n: g for n, g in found.items() if n in alone},
        {n: g for n, g in state.backprop.gradients.items() if n in alone},
        narrow=state.backprop.narrow,
    )
    return passed, f"{len(below - above)} parameters below the last cut get none; above it: {figure}"


def _used_above_and_below(state: _State) -> tuple[set[str], set[str]]:
    """Names of the parameters that the last segment uses, and of those that the others use."""
    last = set(state.exact.dni.plan.segments[-1].nodes)
    above: set[str] = set()
    below: set[str] = set()
    for node in _uncut(state.exact, state.precise).graph.nodes:
        (above if node.name in last else below).update(meta.of(node).parameters)
    return above, below


def _unlocks(state: _State) -> tuple[bool, str]:
    if any(len(one.enters) > 1 for one in state.net.dni.plan.states):
        return True, 'not compared: a state that several segments use takes unlock="none" alone'
    noise = torch.Generator().manual_seed(_SEED)
    said = {n: torch.randn(t.shape, generator=noise) for n, t in state.truth.items()}
    found = [
        _step(state.told(unlock, lambda name, truth: said[name].to(truth)), state.precise).gradients
        for unlock in ("none", "backward")
    ]
    return _close(*found, narrow=state.backprop.narrow)


def _keys(state: _State) -> tuple[bool, str]:
    keys = [name for name in state.net.state_dict() if not name.startswith("dni.")]
    strange = sorted(set(keys) ^ set(state.keys))
    return keys == state.keys, f"{strange[0]} is in one of them only" if strange else f"{len(keys)} keys"


def _round_trip(state: _State) -> tuple[bool, str]:
    net, context = state.net, _context(state.net, state.inputs)
    settings = net.dni.plan.rewrite
    assert settings is not None
    own = [n for n in settings.synthesizers.values() if n.split("(")[0] not in REGISTRY]
    with tempfile.TemporaryDirectory() as folder:
        try:
            artifact.save(net, Path(folder, "net"))
        except SourceError as error:
            return True, f"refused: {error}"
        if own:
            return True, f"written, not read back: {own[0]} is no registered synthesizer"
        if settings.loss == "":
            return True, "written, not read back: the loss is a function of your own"
        try:
            again = artifact.load(Path(folder, "net"))
        except SourceError:  # it says that it needs the model
            again = artifact.load(Path(folder, "net"), model=copy.deepcopy(state.model))
    verdict = _same(*(_step(one, state.inputs, context) for one in (net, again)))
    if verdict[0]:
        return verdict
    # A deep net may magnify the rounding of float32 a thousandfold: if it is that, float64 agrees.
    exact = [_in_float64(one, state.inputs) for one in (net, again)]
    return _same(*(_step(one, inputs, context) for one, inputs in exact))


def _same(before: _Step, after: _Step) -> tuple[bool, str]:
    passed, figure = _close(_named(after.outputs), _named(before.outputs), narrow=before.narrow)
    return _close(after.gradients, before.gradients, narrow=before.narrow) if passed else (passed, figure)


def _moves(state: _State) -> tuple[bool, str]:
    """Several steps, since what a synthesizer says is zero at first, and reaches one cut further down at each."""
    net, context = copy.deepcopy(state.exact), _context(state.exact, state.precise)
    wanted = {name for name, gradient in state.backprop.gradients.items() if gradient.any()}
    reached: set[str] = set()
    optimizer = torch.optim.Adam(net.parameters(), _RATE)
    for _ in range(2 * len(net.dni.plan.cuts) + 2):
        gradients = _stepped(net, state.precise, context).gradients  # and synthesizers keep what they have seen
        for name, parameter in net.named_parameters():
            parameter.grad = gradients.get(name)
        optimizer.step()
        # Not whether its value changed: a gradient may be too small to change it, for backprop too.
        reached |= {name for name, gradient in gradients.items() if gradient.any()}
    stuck = sorted(wanted - reached)
    return not stuck, f"{stuck[0]} does not move" if stuck else f"{len(wanted)} of {len(wanted)} parameters"


def _in_time(state: _State) -> tuple[bool, str]:
    """Told the gradient that the second window sends back, two train as one; told nothing, as truncated ones."""
    figures = []
    for goes_on in (True, False):
        try:
            wanted, sent_back = _both_uncut(state, goes_on)
        except _NotAtOnce as error:
            return True, f"not compared: backpropagation through both at once raises {error}"
        said = sent_back if goes_on else {}
        through, heard = _both_cut(state.told("none", mix=1.0), state.precise, (said, {}))
        truth = [{name: target for name, target in one.items() if name not in sent_back} for one in heard]
        ours, heard = _both_cut(state.told(state.unlock), state.precise, (truth[0] | said, truth[1]))
        target = {name: target for name, target in heard[1].items() if name in sent_back}
        pairs = ((through, wanted), (ours, wanted), (target, sent_back))
        for got, expected in pairs:
            passed, figure = _close(got, expected, narrow=state.backprop.narrow)
            if not passed:
                return False, f"told {'the true gradient' if goes_on else 'nothing'}: {figure}"
            figures.append(figure)
    off = next((figure for figure in figures if figure != "exact"), "exact")
    return True, f"{str(state.dtype).removeprefix('torch.')}: {off}"


class _NotAtOnce(Exception):
    """What the model keeps for its backward pass is written to in the next call."""


def _both_uncut(state: _State, goes_on: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients of two windows' losses, and those of the second's with respect to its states, each as (N, F).

    Args:
        goes_on: Into the first window, through the state that it hands on.
    """
    net, inputs = _uncut(state.exact, state.precise), state.precise
    roots: list[Tensor] = []
    begin: list[Tensor] = []
    handed: list[Tensor] = []
    with preserved(net):
        in_train_mode(net)
        net.zero_grad()
        for number in (_SEED, _SEED + 1):
            seed(number)
            result = _call(net, inputs)
            outputs, own = tensors_in(result), places(state.tensors, result)
            heads, gradients = _loss(outputs, set(own), number)
            roots += heads
            begin += gradients
            if handed:
                break
            for tensor in (outputs[place] for place in own):
                following = tensor.clone() if goes_on and tensor.requires_grad else tensor.detach().requires_grad_()
                following.retain_grad()
                handed.append(following)
            inputs = next_window(net, state.tensors, inputs, handed)
        try:
            torch.autograd.backward(roots, begin)
        except RuntimeError as error:
            if "inplace" not in str(error):
                raise
            raise _NotAtOnce(first_line(error)) from None
        wanted = _gradients(net)
        net.zero_grad()
    gradients = iter([torch.zeros_like(h) if h.grad is None else h.grad for h in handed])
    sent_back = {}
    for index, one in enumerate(state.exact.dni.plan.states):
        time: Any = state.exact.dni.crossings[time_name(index)]
        sent_back[time_name(index)] = time.rows_of([next(gradients) for _ in one.tensors])
    return wanted, sent_back


def _both_cut(
    net: DecoupledModule, inputs: Inputs, said: tuple[dict[str, Tensor], dict[str, Tensor]]
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Gradients of two windows' losses, each with a backward pass of its own, and what synthesizers heard in each.

    Args:
        said: The gradients that they say, in each.
    """
    tensors = [tensor for state in net.dni.plan.states for tensor in state.tensors]
    heard: list[dict[str, Tensor]] = []
    with preserved(net):
        in_train_mode(net)
        net.zero_grad()
        _forget(net)
        for number, truth in zip((_SEED, _SEED + 1), said, strict=True):
            for name, synthesizer in _synthesizers(net):
                synthesizer.told = truth[name] * ops.batch_size(truth[name]) if name in truth else None
                synthesizer.heard.target = None
            seed(number)
            result = _call(net, inputs)
            outputs = tensors_in(result)
            torch.autograd.backward(*_loss(outputs, number=number))
            targets = {name: synthesizer.heard.target for name, synthesizer in _synthesizers(net)}
            heard.append({name: target for name, target in targets.items() if target is not None})
            inputs = next_window(net, tensors, inputs, [outputs[place] for place in places(tensors, result)])
        gradients = _own(_gradients(net))
        net.zero_grad()
    return gradients, heard


def _own(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: g for name, g in gradients.items() if not name.startswith("dni.")}


_CHECKS: dict[str, Callable[[_State], tuple[bool, str]]] = {
    "outputs in eval mode": _eval_outputs,
    "outputs and gradients in train mode": _train_step,
    "true synthetic gradients give backprop's": _oracle,
    "nothing leaks through a cut": _isolation,
    "unlock none equals backward": _unlocks,
    "state_dict keys": _keys,
    "save and load": _round_trip,
    "steps move what backprop moves": _moves,
}
_IN_TIME: dict[str, Callable[[_State], tuple[bool, str]]] = {
    "in time: two windows train as one": _in_time,
}
