"""Prove a rewrite: what `dni-fx check` prints and the tests call.

The synthesizers are replaced by ones that are told what to say. Told the true gradients, the cut network must train
as backpropagation does; told nothing, no gradient may reach the parameters below a cut.
"""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from dni_fx.errors import SourceError
from dni_fx.graph import record_of
from dni_fx.model import preserved, seed
from dni_fx.proof.compare import close
from dni_fx.proof.step import RATE, SEED, Step, context_of, named, outputs_of, own, step, stepped
from dni_fx.proof.subject import Subject, in_float64, uncut
from dni_fx.store import load, save
from dni_fx.synthesizers import REGISTRY

__all__ = ["CHECKS"]


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
        (above if node.name in last else below).update(record_of(node).parameters)
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
            save(net, Path(folder, "net"))
        except SourceError as error:
            return True, f"refused: {error}"
        if own:
            return True, f"written, not read back: {own[0]} is no registered synthesizer"
        if settings.loss == "":
            return True, "written, not read back: the loss is a function of your own"
        try:
            again = load(Path(folder, "net"))
        except SourceError:  # it says that it needs the model
            again = load(Path(folder, "net"), model=copy.deepcopy(state.model))
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


CHECKS: dict[str, Callable[[Subject], tuple[bool, str]]] = {
    "outputs in eval mode": _eval_outputs,
    "outputs and gradients in train mode": _train_step,
    "true synthetic gradients give backprop's": _oracle,
    "nothing leaks through a cut": _isolation,
    "unlock none equals backward": _unlocks,
    "state_dict keys": _keys,
    "save and load": _round_trip,
    "steps move what backprop moves": _moves,
}
