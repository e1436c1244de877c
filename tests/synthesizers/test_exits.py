"""The options of an exit, and the synthesizer that passes its gradient on."""

from typing import Any

import pytest
import torch
from made import CPU

from dni_fx.errors import DniFxError
from dni_fx.plans import CrossingTensor, Cut, ExitPlan, Plan
from dni_fx.synthesizers.base import Activation
from dni_fx.synthesizers.exits import ExitGradient, ExitOptions, exit_names, exit_options


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("exit", ExitOptions(1, "auto")),
        ("exit(units=0)", ExitOptions(0, "auto")),
        ("exit(units='all', weights='readonly')", ExitOptions("all", "readonly")),
        ("exit(weights='ema')", ExitOptions(1, "ema")),
        ("mlp", None),
        ("auto", None),
        (ExitGradient, None),
    ],
)
def test_options(text: Any, expected: ExitOptions | None) -> None:
    assert exit_options(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("exit(units=-1)", r"exit: units=-1; a whole number, 0 or more"),
        ("exit(units=1.5)", r"exit: units=1.5; a whole number"),
        ("exit(units=True)", r"exit: units=True; a whole number"),
        ("exit(units='none')", r"exit: units='none'; a whole number"),
        ("exit(weights='mine')", r"exit: weights='mine'; there are auto, shared, copy, fresh, readonly, ema"),
        ("exit(depth=2)", r"depth"),
        ("exit(", r"exit\("),
    ],
)
def test_wrong_options(text: str, message: str) -> None:
    with pytest.raises(DniFxError, match=message):
        exit_options(text)


def test_the_gradient_is_of_each_samples_own_loss() -> None:
    """The loss of an exit is a mean over the batch."""
    gradient = torch.rand(6, 3)
    made = ExitGradient(Activation((4, 3), torch.float32, CPU, -1))
    assert torch.equal(made(torch.rand(6, 3), gradient), gradient * 6)
    rows = ExitGradient(Activation((4, 3), torch.float32, CPU, -1, rows=2))
    assert torch.equal(rows(torch.rand(6, 3), gradient), gradient * 3)
    assert not list(made.parameters())


def test_names_in_a_plan() -> None:
    tensors = tuple(CrossingTensor(name, (4, 3), "float32", 48, -1) for name in ("h", "skip"))
    planned = ExitPlan(2, "copy", ("y",), {}, (), ())
    plan = Plan("Net", "", (), "", (Cut("h", tensors, planned), Cut("i", tensors[:1])), (), "")
    assert exit_names(plan) == dict.fromkeys(("cut0_h", "cut0_skip"), "exit(units=2, weights='copy')")
    assert exit_options(exit_names(plan)["cut0_h"]) == ExitOptions(2, "copy")


def test_all_units_cannot_be_frozen() -> None:
    """The exit would train them, without a word."""
    for tokens in (0, 1.5, True, "some"):
        with pytest.raises(DniFxError, match="exit: tokens="):
            ExitOptions(tokens=tokens)  # type: ignore[arg-type]
    with pytest.raises(DniFxError, match="frozen_units is for a number of units"):
        ExitOptions(units="all", frozen_units=True)
