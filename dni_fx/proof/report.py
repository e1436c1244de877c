"""`dni_fx.check`: run every check of a rewrite, and report which properties hold."""

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.text import Text
from torch import Tensor
from torch.utils import _pytree as pytree

from dni_fx.errors import DniFxError, first_line
from dni_fx.model import Inputs, preserved, to_inputs
from dni_fx.plans import Plan
from dni_fx.progress import announce
from dni_fx.proof.exits import exits_of_all_units, take_loss_of_step
from dni_fx.proof.in_time import two_windows
from dni_fx.proof.properties import CHECKS
from dni_fx.proof.subject import Subject
from dni_fx.report import add_row, plain_table
from dni_fx.runtime import DecoupledModule, rewritten

__all__ = ["Check", "Report", "check", "check_table"]


@dataclass(frozen=True)
class Check:
    """One property of a rewrite.

    Attributes:
        name: What is checked.
        passed: Whether the property holds.
        figure: What was measured, in words.
    """

    name: str
    passed: bool
    figure: str


@dataclass(frozen=True)
class Report:
    """All properties of a rewrite; true if every one holds."""

    checks: tuple[Check, ...]

    def __bool__(self) -> bool:
        return all(check.passed for check in self.checks)

    def __str__(self) -> str:
        return "\n".join(f"{'pass' if one.passed else 'FAIL'}  {one.name}: {one.figure}" for one in self.checks)

    @property
    def verdict(self) -> str:
        """What the checks say together, in a sentence."""
        failed = [check.name for check in self.checks if not check.passed]
        if failed:
            return f"This is NOT the same network: of {len(self.checks)} checks, these failed: {', '.join(failed)}."
        return f"The rewrite is the same network, decoupled: all {len(self.checks)} checks passed."

    def to_dict(self) -> dict[str, Any]:
        return {"passed": bool(self), "checks": [asdict(check) for check in self.checks]}


def check(
    net: DecoupledModule,
    inputs: Any,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> Report:
    """Check that a rewritten model is the same network, decoupled.

    The net, its weights, gradients and buffers are left as they are.

    Args:
        net: What `dni_fx.transform` or `dni_fx.load` returned.
        inputs: A tensor or a tuple of positional arguments, batch first, any size that the model takes.
        example_kwargs: Keyword arguments of the same call.
        kwargs: The former name of `example_kwargs`.

    Returns:
        A report that is true if every check holds: outputs in eval mode and in train mode; gradients with true
        synthetic gradients (in float64 where the model runs in it); both on other batch sizes and lengths; isolation;
        unlock "none" against "backward"; keys of the state_dict; save and load; that steps move every parameter that
        backpropagation moves; with a cut in time, two windows of these inputs against backpropagation through both; and
        with exits, that exits of all units give the gradients of backpropagation.

    Raises:
        DniFxError: If `net` was not made by dni-fx, or does not run on the inputs.
    """
    net = rewritten(net)
    if kwargs is not None:
        warnings.warn("check: the argument kwargs is now called example_kwargs", DeprecationWarning, stacklevel=2)
    example_kwargs = kwargs if example_kwargs is None else example_kwargs
    example = inputs if isinstance(inputs, Inputs) else to_inputs(inputs, example_kwargs)
    with preserved(net), torch.enable_grad():
        announce("steps to compare with", 0)
        try:
            _detach_attributes(net)
            subject = Subject(_copied(net), example)
        except DniFxError:
            raise
        except Exception as error:
            raise DniFxError(f"the model cannot be checked on these inputs: {first_line(error)}") from None
        checks = CHECKS | (_IN_TIME if net.dni.plan.states else {}) | (_WITH_EXITS if net.dni.exits else {})
        with preserved(subject.net), preserved(subject.exact):  # which keep one copy of the state for all steps
            found = []
            for number, (name, run) in enumerate(checks.items(), 1):
                announce(name, number / (len(checks) + 1))
                found.append(Check(name, *_outcome(run, subject)))
            return Report(tuple(found))


def _copied(net: DecoupledModule) -> DecoupledModule:
    """A copy to prove."""
    net = copy.deepcopy(net)
    take_loss_of_step(net)
    return net


def _detach_attributes(net: DecoupledModule) -> None:
    """Detach tensors that are attributes of modules, such as the last state or loss: their graph cannot be copied."""
    original = net.dni_captured.original
    for module in [*net.modules(), *([original] if original is not None else [])]:
        for name, value in list(vars(module).items()):
            tensors = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
            if any(tensor.grad_fn is not None for tensor in tensors):  # `preserved` puts them back
                detached = pytree.tree_map_only(Tensor, lambda t: t if t.grad_fn is None else t.detach(), value)
                vars(module)[name] = detached


def _outcome(run: Callable[[Subject], tuple[bool, str]], subject: Subject) -> tuple[bool, str]:
    """Run a check; an error is a failure of the check, with the error as its figure."""
    try:
        return run(subject)
    except Exception as error:
        return False, f"{type(error).__name__}: {first_line(error)}"


_IN_TIME: dict[str, Callable[[Subject], tuple[bool, str]]] = {
    "in time: two windows train as one": two_windows,
}

_WITH_EXITS: dict[str, Callable[[Subject], tuple[bool, str]]] = {
    "exits of all units give backprop's": exits_of_all_units,
}


def check_table(plan: Plan, report: Report) -> RenderableType:
    """The verdict, why there are no cuts if there are none, and a row for each check: pass or FAIL, and its figure."""
    counts = f"{len(plan.cuts)} in depth, {len(plan.states)} in time"
    cuts = counts if plan.cuts or plan.states else plan.why
    table = plain_table(f"{plan.model}: cuts: {cuts}; front end {plan.frontend}", ("check", "result", "figure"))
    for check in report.checks:
        add_row(table, check.name, Text("pass", "green") if check.passed else Text("FAIL", "bold red"), check.figure)
    is_cut = bool(plan.cuts or plan.states)
    return Group(Text(report.verdict if is_cut else f"The net has no cut. {report.verdict}"), Text(), table)
