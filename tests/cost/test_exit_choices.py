"""Which exits automatic cuts choose among."""

from dataclasses import replace

import networkx as nx
import pytest
import torch
from exit_nets import NETS
from torch import Tensor, nn

from dni_fx.cost.exit_choices import exit_choices, with_exits
from dni_fx.errors import DniFxError
from dni_fx.plans import run_twice
from dni_fx.settings import Settings
from dni_fx.synthesizers.exits import ExitOptions


class ResidualMlp(nn.Module):
    """Four residual branches of vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for branch in self.branches:
            x = x + torch.tanh(branch(x))
        return self.head(x)


def test_auto_chooses_among_exits_where_there_is_a_loss() -> None:
    net, own = NETS["mlp"].net("exit").dni_uncut(), NETS["own loss"].net("exit").dni_uncut()
    options = [ExitOptions(2), ExitOptions(1), ExitOptions(1, frozen_units=True), ExitOptions(0)]
    assert exit_choices(net, "auto", Settings(loss="cross_entropy"), in_time=False) == options
    assert exit_choices(own, "auto", Settings(), in_time=False) == options
    assert exit_choices(net, "auto", Settings(), in_time=False) == []
    assert exit_choices(net, "linear", Settings(loss="cross_entropy"), in_time=False) == []
    assert exit_choices(net, "exit(units=2)", Settings(loss="mse_loss"), in_time=False) == [ExitOptions(2)]
    with pytest.raises(DniFxError, match="exits are for cuts in depth alone"):
        exit_choices(net, "exit", Settings(loss="mse_loss"), in_time=True)


def test_no_cuts_in_depth() -> None:
    plan = replace(NETS["mlp"].net("exit").dni.plan, cuts=())
    assert with_exits(plan, nx.DiGraph(), None) == plan


def test_units_do_not_end_in_a_plain_cut() -> None:
    """The value of the units would have two predictions, for the two segments below."""
    plan = NETS["mlp"].net("exit").dni.plan
    below, above = plan.cuts
    again = replace(plan, cuts=(replace(below, exit=below.exit), run_twice(replace(above, tensors=below.predicted))))
    known = with_exits(again, nx.DiGraph(), None, again)
    assert [cut.exit is not None and cut.exit.unit is None for cut in known.cuts] == [True, True]


@pytest.mark.parametrize("named", ["exit(units=2)", "exit(frozen_units=True)"])
def test_exits_that_the_user_names_are_taken_where_auto_would_not(named: str) -> None:
    """Two units that would run a second time, and frozen residual branches of vectors."""
    frozen = "frozen" in named
    case = replace(NETS["mlp"], make=ResidualMlp, cuts=["add"]) if frozen else NETS["transformer"]
    below = [case.transform(synthesizer=name).dni.plan.cuts[0].exit for name in (named, "auto")]
    assert [(found.units, found.frozen_units) == (2 - frozen, frozen) for found in below] == [True, False]
