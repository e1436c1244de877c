"""The two ends of units that run once, in the graph."""

import pytest
from exit_nets import NETS, Case, plain_mlp

from dni_fx import Training, ops
from dni_fx.passes.boundary import origin, passed_on
from dni_fx.plans import run_twice

MLP = NETS["mlp"]


def calls(case: Case, target: object, synthesizer: str = "exit", **options: object) -> list[str]:
    net = case.net(synthesizer, **options)
    return [node.name for node in net.graph.nodes if node.target is target]


def test_an_end_at_each_cut() -> None:
    net = MLP.net("exit")
    begun, ended = ([n for n in net.graph.nodes if n.target is t] for t in (ops.begin_unit, ops.decouple_unit))
    assert [passed_on(node)[0].name for node in ended] == ["_2", "_4"]
    assert [origin(passed_on(node)[0]).name for node in begun] == ["_1", "_3"]
    assert not [n for n in net.graph.nodes if n.target is ops.decouple]


@pytest.mark.parametrize("options", [{"unlock": "none"}, {"training": Training(warmup=3)}])
def test_units_run_twice_where_true_gradients_go_through_the_cut(options: dict[str, object]) -> None:
    assert not calls(MLP, ops.begin_unit, **options)


def test_cuts_of_both_kinds_in_one_graph() -> None:
    """The first cut has two units, of which the segment above holds one."""
    net = MLP.net("exit(units=2)")
    assert [cut.exit.unit is None for cut in net.dni.plan.cuts] == [True, False]
    targets = [n.target for n in net.graph.nodes if n.target in (ops.decouple, ops.begin_unit, ops.decouple_unit)]
    assert targets == [ops.decouple, ops.begin_unit, ops.decouple_unit]
    assert all(run_twice(cut).exit.unit is None for cut in net.dni.plan.cuts)


def test_a_unit_that_writes_to_the_tensor_at_the_cut_runs_twice() -> None:
    made = Case("inplace", lambda: plain_mlp(True), MLP.inputs, MLP.target, [], MLP.loss)
    assert made.net("exit", ("0", "4")).dni.plan.cuts[0].exit.unit is None
