"""Prove a rewrite: what `dni-fx check` prints and the tests call.

The synthesizers are replaced by ones that are told what to say. Told the true gradients, the cut network must train
as backpropagation does; told nothing, no gradient may reach the parameters below a cut.
"""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dni_fx import artifact, meta
from dni_fx.checking_in_time import two_windows
from dni_fx.errors import DniFxError, SourceError, first_line
from dni_fx.inputs import Inputs, given
from dni_fx.module import DecoupledModule
from dni_fx.preserve import preserved, seed
from dni_fx.synthesizers import REGISTRY
from dni_fx.told import (
    RATE,
    SEED,
    Step,
    Subject,
    Told,
    close,
    context_of,
    in_float64,
    named,
    outputs_of,
    own,
    step,
    stepped,
    uncut,
)

__all__ = ["Check", "Report", "Told", "check"]


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
            state = Subject(copy.deepcopy(net), example)
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


def _outcome(one: "Callable[[Subject], tuple[bool, str]]", state: "Subject") -> tuple[bool, str]:
    try:
        return one(state)
    except Exception as error:
        return False, f"{type(error).__name__}: {first_line(error)}"


def _eval_outputs(state: Subject) -> tuple[bool, str]:
    found = []
    for module in (state.net, state.model):
        with preserved(module), torch.no_grad():
            seed(SEED)
            found.append(named(outputs_of(module.eval(), state.inputs)))
    return close(*found)


def _train_step(state: Subject) -> tuple[bool, str]:
    """Outputs and buffers of the net, and gradients of the captured graph: those of the model as it was given."""
    captured = step(uncut(state.net, state.inputs), state.inputs)
    model = step(state.model, state.inputs)
    cut = step(state.net, state.inputs, context_of(state.net, state.inputs))
    wanted = {name: b for name, b in model.buffers.items() if name in cut.buffers}
    passed, figure = close(
        named(cut.outputs) | {name: cut.buffers[name] for name in wanted},
        named(model.outputs) | wanted,
        narrow=model.narrow,
    )
    return close(captured.gradients, model.gradients, narrow=model.narrow) if passed else (passed, figure)


def _oracle(state: Subject) -> tuple[bool, str]:
    ours = step(state.told(state.unlock, lambda _, truth: truth), state.precise)
    for got in (state.through, ours):
        passed, figure = close(own(got.gradients), state.backprop.gradients, narrow=got.narrow)
        if not passed:
            break
    return passed, f"{str(state.dtype).removeprefix('torch.')}: {figure}"


def _isolation(state: Subject) -> tuple[bool, str]:
    """With zero synthetic gradients only what is above the last cut gets a gradient, and its true one."""
    cut = state.told(state.unlock)
    above, below = _used_above_and_below(state)
    found = own(step(cut, state.precise).gradients)
    leaking = [n for n in sorted(below - above) if n in found and found[n].any()]
    if leaking:
        return False, f"{leaking[0]} gets a gradient"
    alone = above - below
    passed, figure = close(
        {n: g for n, g in found.items() if n in alone},
        {n: g for n, g in state.backprop.gradients.items() if n in alone},
        narrow=state.backprop.narrow,
    )
    return passed, f"{len(below - above)} parameters below the last cut get none; above it: {figure}"


def _used_above_and_below(state: Subject) -> tuple[set[str], set[str]]:
    """Names of the parameters that the last segment uses, and of those that the others use."""
    last = set(state.exact.dni.plan.segments[-1].nodes)
    above: set[str] = set()
    below: set[str] = set()
    for node in uncut(state.exact, state.precise).graph.nodes:
        (above if node.name in last else below).update(meta.of(node).parameters)
    return above, below


def _unlocks(state: Subject) -> tuple[bool, str]:
    if any(len(one.enters) > 1 for one in state.net.dni.plan.states):
        return True, 'not compared: a state that several segments use takes unlock="none" alone'
    noise = torch.Generator().manual_seed(SEED)
    said = {n: torch.randn(t.shape, generator=noise) for n, t in state.truth.items()}
    found = [
        step(state.told(unlock, lambda name, truth: said[name].to(truth)), state.precise).gradients
        for unlock in ("none", "backward")
    ]
    return close(*found, narrow=state.backprop.narrow)


def _keys(state: Subject) -> tuple[bool, str]:
    keys = [name for name in state.net.state_dict() if not name.startswith("dni.")]
    strange = sorted(set(keys) ^ set(state.keys))
    return keys == state.keys, f"{strange[0]} is in one of them only" if strange else f"{len(keys)} keys"


def _round_trip(state: Subject) -> tuple[bool, str]:
    net, context = state.net, context_of(state.net, state.inputs)
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
    verdict = _same(*(step(one, state.inputs, context) for one in (net, again)))
    if verdict[0]:
        return verdict
    # A deep net may magnify the rounding of float32 a thousandfold: if it is that, float64 agrees.
    exact = [in_float64(one, state.inputs) for one in (net, again)]
    return _same(*(step(one, inputs, context) for one, inputs in exact))


def _same(before: Step, after: Step) -> tuple[bool, str]:
    passed, figure = close(named(after.outputs), named(before.outputs), narrow=before.narrow)
    return close(after.gradients, before.gradients, narrow=before.narrow) if passed else (passed, figure)


def _moves(state: Subject) -> tuple[bool, str]:
    """Several steps, since what a synthesizer says is zero at first, and reaches one cut further down at each."""
    net, context = copy.deepcopy(state.exact), context_of(state.exact, state.precise)
    wanted = {name for name, gradient in state.backprop.gradients.items() if gradient.any()}
    reached: set[str] = set()
    optimizer = torch.optim.Adam(net.parameters(), RATE)
    for _ in range(2 * len(net.dni.plan.cuts) + 2):
        gradients = stepped(net, state.precise, context).gradients  # and synthesizers keep what they have seen
        for name, parameter in net.named_parameters():
            parameter.grad = gradients.get(name)
        optimizer.step()
        # Not whether its value changed: a gradient may be too small to change it, for backprop too.
        reached |= {name for name, gradient in gradients.items() if gradient.any()}
    stuck = sorted(wanted - reached)
    return not stuck, f"{stuck[0]} does not move" if stuck else f"{len(wanted)} of {len(wanted)} parameters"


_CHECKS: dict[str, Callable[[Subject], tuple[bool, str]]] = {
    "outputs in eval mode": _eval_outputs,
    "outputs and gradients in train mode": _train_step,
    "true synthetic gradients give backprop's": _oracle,
    "nothing leaks through a cut": _isolation,
    "unlock none equals backward": _unlocks,
    "state_dict keys": _keys,
    "save and load": _round_trip,
    "steps move what backprop moves": _moves,
}
_IN_TIME: dict[str, Callable[[Subject], tuple[bool, str]]] = {
    "in time: two windows train as one": two_windows,
}
