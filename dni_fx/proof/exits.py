"""The proof of exits: of all units, with constant weights, an exit gives backpropagation's own gradient."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dni_fx.compiler import rewrite
from dni_fx.model import seed, tensors_in
from dni_fx.plans import Cut, run_twice
from dni_fx.proof.compare import close
from dni_fx.proof.step import SEED, output_gradients, step, without_dni
from dni_fx.proof.subject import Subject, uncut
from dni_fx.runtime import DecoupledModule, Exit
from dni_fx.settings import Settings

__all__ = ["exits_of_all_units", "loss_of_step", "take_loss_of_step"]

_ALL_UNITS = "exit(units='all', weights='readonly')"


def loss_of_step(outputs: Any, _target: object = None) -> Tensor:
    """The loss whose gradients at the outputs are those that `step` draws."""
    trained, gradients = output_gradients(tensors_in(outputs))
    return torch.stack([(o * g.to(o)).sum() for o, g in zip(trained, gradients, strict=True)]).sum()


def take_loss_of_step(net: DecoupledModule) -> None:
    """Let the exits of a net end in `loss_of_step`, for which any target will do."""
    if net.dni.exits and not (net.dni.rewrite.classes or net.dni.rewrite.context_size):
        net.dni.likely_loss = None  # the target that a proof makes up fits no other loss
    for module in net.dni.modules():
        if isinstance(module, Exit) and not module.plan.loss:
            module.end_in(loss_of_step)


def exits_of_all_units(subject: Subject) -> tuple[bool, str]:
    """Exits of all units give backpropagation's gradients; the figure names the parameters that exits train."""
    if subject.tensors:
        return True, "not compared: there is a cut in time"
    captured = uncut(subject.exact, subject.precise)
    net = rewrite(captured, subject.exact.dni.plan, _ALL_UNITS, Settings(subject.unlock, loss=loss_of_step))
    found = step(net, subject.precise, {"dni_context": torch.zeros(())})
    passed, figure = close(without_dni(found.gradients), subject.backprop.gradients, narrow=found.narrow)
    if passed and any(cut.exit is not None and cut.exit.unit is not None for cut in subject.net.dni.plan.cuts):
        passed, figure = _units_once_and_twice(subject)
    return passed, f"{figure}; {_trained(subject.net)}"


def _units_once_and_twice(subject: Subject) -> tuple[bool, str]:
    """Units that run once for the exit and the segment above give the gradients of units that run twice."""
    gradients = []
    for change in (_with_shared_weights, lambda cut: run_twice(_with_shared_weights(cut))):
        plan = subject.exact.dni.plan
        plan = replace(plan, cuts=tuple(map(change, plan.cuts)))
        with torch.random.fork_rng():  # small heads draw their weights
            seed(SEED)
            net = rewrite(uncut(subject.exact, subject.precise), plan, "auto", Settings(loss=loss_of_step))
        for head in net.dni.exits.values():
            head.to(subject.dtype)  # whatever dtype the model had when it was planned
        gradients.append(without_dni(step(net, subject.precise, {"dni_context": torch.zeros(())}).gradients))
    passed, figure = close(*gradients)
    return passed, figure if passed else f"where units run once, {figure}"


def _with_shared_weights(cut: Cut) -> Cut:
    """The cut, whose exit has no copies of its own: these may have other weights by now."""
    return cut if cut.exit is None or not cut.exit.copied else replace(cut, exit=replace(cut.exit, weights="shared"))


def _trained(net: DecoupledModule) -> str:
    """The parameters of the model that exits train beside the segments, in words."""
    exits = [cut.exit for cut in map(run_twice, net.dni.plan.cuts) if cut.exit is not None]
    paths = {path for p in exits if p.trains for path in p.borrowed if path not in {*p.copied, *p.constant}}
    names = [
        n for n, p in net.named_parameters() if p.requires_grad and any(n == q or n.startswith(f"{q}.") for q in paths)
    ]
    if not names:
        return "no exit trains a parameter of the model"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"exits also train {', '.join(names[:3])}{more}"
