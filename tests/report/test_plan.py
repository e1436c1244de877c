"""The table of a plan."""

import io
from typing import Any

import pytest
import torch
from exit_nets import NETS
from rich.console import Console
from torch import nn
from windows import Lstm, cut

import dni_fx
from dni_fx.plans import Plan
from dni_fx.report.plan import plan_table


def text_of(plan: Plan) -> str:
    text = Console(width=200, record=True, file=io.StringIO())
    text.print(plan_table(plan))
    return text.export_text()


def test_it_is_reported() -> None:
    shown = text_of(cut(Lstm).dni.plan)
    assert "time0: state 2x3x4, state 2x3x4, cut in time, synthesizer least_squares" in shown


def test_the_cut_of_an_exit() -> None:
    """The cut is after add_1; the units of its exit end in add_2, which gets the synthetic gradient."""
    plan = NETS["transformer"].net("exit").dni.plan
    assert "exit at cut 0, after add_1: the next unit, which the segment above runs anyway" in text_of(plan)
    assert "tensors that cross each cut, or end units that run once" in text_of(plan)
    assert "cut after add_1, add_3, with exits, front end fx" in repr(plan)
    assert "units that run once" not in text_of(NETS["transformer"].net("exit(weights='copy')").dni.plan)


@pytest.mark.parametrize(
    ("depth", "width", "rows", "options", "saves"),
    [
        (4, 4, 4, {"cuts": 2}, False),
        (4, 4, 4, {"cuts": 2, "objective": "throughput"}, False),
        (4, 4, 4, {"cuts": ["1"]}, False),
        (4, 64, 4, {"cuts": 2}, True),  # no memory, but time
        (12, 16, 4096, {"cuts": 3}, True),
    ],
)
def test_cuts_that_save_nothing(depth: int, width: int, rows: int, options: dict[str, Any], saves: bool) -> None:
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.Tanh())]
    plan = dni_fx.plan(nn.Sequential(*layers), torch.rand(rows, width), **options)
    assert ("The cuts save less than 5 %" not in text_of(plan)) == saves


def test_where_auto_makes_no_cut_the_table_says_why_once() -> None:
    text = text_of(dni_fx.plan(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), torch.rand(4, 4)))
    assert text.startswith("The net has no cuts: auto makes none, since they would save less than 5 % of memory")
    assert text.count("makes none") == 1
    assert "cuts save n" not in text
