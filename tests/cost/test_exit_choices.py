"""Which exits automatic cuts choose among."""

from dataclasses import replace
from typing import Any

import networkx as nx
import pytest
from exit_nets import NETS

from dni_fx.cost.exit_choices import exit_choices, with_exits
from dni_fx.errors import DniFxError
from dni_fx.plans import run_twice
from dni_fx.settings import Settings
from dni_fx.synthesizers.exits import ExitOptions


def test_auto_chooses_among_exits_where_there_is_a_loss() -> None:
    net, own = NETS["mlp"].net("exit").dni_uncut(), NETS["own loss"].net("exit").dni_uncut()
    options: list[Any] = [ExitOptions(2), ExitOptions(1), ExitOptions(1, frozen_units=True), ExitOptions(0)]
    assert exit_choices(net, "auto", Settings(loss="cross_entropy"), in_time=False) == options
    assert exit_choices(own, "auto", Settings(), in_time=False) == options
    assert exit_choices(net, "auto", Settings(), in_time=False) == [None]
    assert exit_choices(net, "linear", Settings(loss="cross_entropy"), in_time=False) == [None]
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
