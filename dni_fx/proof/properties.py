"""The properties of a correct rewrite: each check returns whether its property holds, and a figure.

Scripted synthesizers stand in the place of the net's own. With true gradients, the cut network must train as
backpropagation does; with zero gradients, no gradient may reach the parameters below a cut.
"""

import copy
import tempfile
from collections.abc import Callable, Set
from pathlib import Path

import torch
from torch import Tensor, nn

from dni_fx.errors import SourceError
from dni_fx.graph import record_of
from dni_fx.model import preserved, seed
from dni_fx.plans import UnitPlan
from dni_fx.proof.compare import close, same_outputs
from dni_fx.proof.exits import take_loss_of_step
from dni_fx.proof.other_sizes import other_sizes
from dni_fx.proof.step import RATE, SEED, StepResult, context_of, named, outputs_of, step, step_in_place, without_dni
from dni_fx.proof.subject import Subject, in_float64, uncut
from dni_fx.store import load, save

__all__ = ["CHECKS"]


def _eval_outputs(subject: Subject) -> tuple[bool, str]:
    """In eval mode, net and model give the same outputs."""
    found = []
    for module in (subject.net, subject.model):
        try:
            found.append(_outputs_in_eval_mode(module, subject, with_grad=False))
        except RuntimeError:  # forward may call torch.autograd.grad
            found.append(_outputs_in_eval_mode(module, subject, with_grad=True))
    return close(*found)


def _outputs_in_eval_mode(module: nn.Module, subject: Subject, *, with_grad: bool) -> dict[str, Tensor]:
    with preserved(module), torch.set_grad_enabled(with_grad):
        seed(SEED)
        return named(outputs_of(module.eval(), subject.inputs))


def _train_step(subject: Subject) -> tuple[bool, str]:
    """In train mode, outputs and buffers of the net, and gradients of the captured graph, equal those of the model."""
    captured = step(uncut(subject.net, subject.inputs), subject.inputs)
    model = step(subject.model, subject.inputs)
    passed, figure = same_outputs(subject.step, model)
    return close(captured.gradients, model.gradients, narrow=model.narrow) if passed else (passed, figure)


def _oracle(subject: Subject) -> tuple[bool, str]:
    """With true synthetic gradients, the net trains as backpropagation does."""
    passed, figure = subject.compare_with_backprop(subject.precise, subject.backprop, subject.through, subject.truth)
    return passed, f"{str(subject.dtype).removeprefix('torch.')}: {figure}"


def _isolation(subject: Subject) -> tuple[bool, str]:
    """With zero synthetic gradients, only parameters above the last cut get a gradient: their true one."""
    above, below = _used_above_and_below(subject)
    found = without_dni(subject.with_gradients({}, subject.precise).gradients)
    leaking = [n for n in sorted(below - above) if n in found and _any(found[n])]
    if leaking:
        return False, f"{leaking[0]} gets a gradient"
    alone = above - below
    passed, figure = close(
        {n: g for n, g in found.items() if n in alone},
        {n: g for n, g in subject.backprop.gradients.items() if n in alone},
        narrow=subject.backprop.narrow,
    )
    return passed, f"{len(below - above)} parameters below the last cut get none; above it: {figure}"


def _used_above_and_below(subject: Subject) -> tuple[set[str], set[str]]:
    """Names of the parameters that the last segment uses, and names of the parameters that the other segments use."""
    last = set(subject.exact.dni.plan.segments[-1].nodes)
    above: set[str] = set()
    below: set[str] = set()
    for node in subject.captured.graph.nodes:
        (above if node.name in last else below).update(record_of(node).parameters)
    return above, below


def _unlocks(subject: Subject) -> tuple[bool, str]:
    """With the same random synthetic gradients, both values of `unlock` give the same gradients.

    But for units that run once: with unlock="backward" they get the true gradient from the segment above.
    """
    if any(len(state.enters) > 1 for state in subject.net.dni.plan.states):
        return True, 'not compared: a state that several segments use takes unlock="none" alone'
    generator = torch.Generator().manual_seed(SEED)
    noise = {name: torch.randn(t.shape, generator=generator).to(t) for name, t in subject.truth.items()}
    other = subject.scripted("backward" if subject.unlock == "none" else "none", noise)
    ours, theirs = subject.with_gradients(noise, subject.precise), step(other, subject.precise)
    in_units = _used_by(subject, {name for unit in _units(subject) for name in unit.nodes})
    both = [{n: g for n, g in one.gradients.items() if n not in in_units} for one in (ours, theirs)]
    return close(*both, narrow=subject.backprop.narrow)


def _units(subject: Subject) -> list[UnitPlan]:
    """The units that run once."""
    return [cut.exit.unit for cut in subject.net.dni.plan.cuts if cut.exit is not None and cut.exit.unit is not None]


def _used_by(subject: Subject, nodes: Set[str]) -> set[str]:
    """Names of the parameters that some nodes use."""
    return {name for node in subject.captured.graph.nodes if node.name in nodes for name in record_of(node).parameters}


def _keys(subject: Subject) -> tuple[bool, str]:
    """Outside of `dni`, the state_dict has the keys of the model's, in the same order."""
    keys = [name for name in subject.net.state_dict() if not name.startswith("dni.")]
    strange = sorted(set(keys) ^ set(subject.keys))
    return keys == subject.keys, f"{strange[0]} is in one of them only" if strange else f"{len(keys)} keys"


def _round_trip(subject: Subject) -> tuple[bool, str]:
    """The net that is saved and loaded again trains as the net does."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            save(subject.net, Path(folder, "net"))
        except SourceError as error:
            return True, f"refused: {error}"
        try:
            again = load(Path(folder, "net"))
        except SourceError:  # the folder needs the model
            again = load(Path(folder, "net"), model=copy.deepcopy(subject.model))
    take_loss_of_step(again)
    passed, figure = _same(subject.step, step(again, subject.inputs, context_of(subject.net, subject.inputs)))
    if passed:
        return passed, figure
    # A deep net may magnify the rounding of float32 a thousandfold. Then the two agree in float64.
    exact = [in_float64(one, subject.inputs) for one in (subject.net, again)]
    context = context_of(subject.net, subject.inputs)
    return _same(*(step(one, inputs, context) for one, inputs, _ in exact))


def _same(before: StepResult, after: StepResult) -> tuple[bool, str]:
    """Compare outputs and gradients of two steps."""
    passed, figure = close(named(after.outputs), named(before.outputs), narrow=before.narrow)
    return close(after.gradients, before.gradients, narrow=before.narrow) if passed else (passed, figure)


def _moves(subject: Subject) -> tuple[bool, str]:
    """In a few steps, every parameter that backpropagation moves gets a gradient.

    Predictions are zero at first, so each step reaches one cut further down.
    """
    net, context = copy.deepcopy(subject.exact), context_of(subject.exact, subject.precise)
    wanted = {name for name, gradient in subject.backprop.gradients.items() if _any(gradient)}
    reached: set[str] = set()
    sparse = {name for name, gradient in subject.backprop.gradients.items() if gradient.is_sparse}
    dense, of_sparse = ([p for n, p in net.named_parameters() if (n in sparse) is takes] for takes in (False, True))
    optimizers: list[torch.optim.Optimizer] = [torch.optim.Adam(dense, RATE)]
    optimizers += [torch.optim.SparseAdam(of_sparse, RATE)] if sparse else []
    for number in range(2 * len(net.dni.plan.cuts) + 2):
        gradients = step_in_place(net, subject.precise, context).gradients  # in place: synthesizers keep statistics
        # Look at gradients, not at changes: a gradient may be too small to change its parameter, in backprop too.
        reached |= {name for name in wanted - reached if name in gradients and _any(gradients[name])}
        if number and reached == wanted:  # after two steps at least: the first one changes the state of the net
            break
        for name, parameter in net.named_parameters():
            parameter.grad = gradients.get(name)
        for optimizer in optimizers:
            optimizer.step()
    stuck = sorted(wanted - reached)
    return not stuck, f"{stuck[0]} does not move" if stuck else f"{len(wanted)} of {len(wanted)} parameters"


def _any(gradient: Tensor) -> bool:
    """Whether a gradient, dense or sparse, has an entry that is not zero."""
    return bool(gradient.to_dense().any())


CHECKS: dict[str, Callable[[Subject], tuple[bool, str]]] = {
    "outputs in eval mode": _eval_outputs,
    "outputs and gradients in train mode": _train_step,
    "true synthetic gradients give backprop's": _oracle,
    "other batch sizes and lengths": other_sizes,
    "nothing leaks through a cut": _isolation,
    "unlock none equals backward": _unlocks,
    "state_dict keys": _keys,
    "save and load": _round_trip,
    "steps move what backprop moves": _moves,
}
