"""Which exits a plan gets: those asked for by name, and those that `auto` takes."""

from typing import Any

import torch
from exit_nets import NETS, Transformer
from torch import Tensor, nn

import dni_fx
from dni_fx.plans import Plan


class Residual(nn.Module):
    """Blocks of vectors, or of maps, each added to its input."""

    def __init__(self, maps: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1) if maps else nn.Linear(6, 64)
        self.blocks = nn.ModuleList(
            nn.Conv2d(8, 8, 3, padding=1) if maps else nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 64), nn.GELU())
            for _ in range(8)
        )
        self.last = nn.Conv2d(8, 2, 1) if maps else nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)


def planned(model: nn.Module, x: Tensor, **options: Any) -> Plan:
    return dni_fx.plan(model, x, loss="mse_loss", **options)


def exits(plan: Plan) -> list[tuple[int | str, bool, bool]]:
    """The units of each exit, whether they are frozen, and whether it is a head."""
    found = [cut.exit for cut in plan.cuts]
    return [(one.units, one.frozen_units, bool(one.heads)) for one in found if one is not None]


def test_units_that_run_twice_are_taken_by_name() -> None:
    """Between two attention layers there is an MLP branch, so `auto` takes one."""
    case = NETS["transformer"]
    options: dict[str, Any] = {"loss": case.loss, "cuts": ["add_1"]}
    assert exits(dni_fx.plan(Transformer(32), *case.inputs, **options)) == [(1, False, False)]
    assert exits(dni_fx.plan(Transformer(32), *case.inputs, **options, synthesizer="exit(units=2)")) == [
        (2, False, False)
    ]


def test_residual_branches_that_mix_no_positions_are_no_units() -> None:
    """Such a net learns as fast without."""
    for cuts in (2, 4):
        plan = planned(Residual(maps=False), torch.rand(4, 6), cuts=cuts)
        assert exits(plan) == [(0, False, False)] * (cuts - 1)


class FirstPosition(Residual):
    """The output is of the first position alone, and nothing mixes positions."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, 0]


def test_an_exit_is_found_where_no_unit_suits() -> None:
    """Where the output is of one position, the last choice of `auto` has a unit, too."""
    plan = planned(FirstPosition(maps=False), torch.rand(4, 5, 6), cuts=2)
    assert [one[1:] for one in exits(plan)] == [(False, False)]


def test_a_frozen_unit_rather_than_a_dearer_head() -> None:
    plan = planned(Residual(maps=True), torch.rand(2, 1, 8, 8), cuts=4)
    assert exits(plan) == [(1, True, False)] * 3


def test_the_units_of_one_cut_may_cost_more_than_those_of_three() -> None:
    maps = Residual(maps=True), torch.rand(2, 1, 8, 8)
    assert exits(planned(*maps, cuts=2)) == [(1, False, False)]
    assert exits(planned(*maps, cuts=4, synthesizer_share=0.5)) == [(1, False, False)] * 3
