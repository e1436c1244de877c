"""Passes run in order; the graph is checked after each, and the code is made anew at the end."""

import pytest
import torch
from small_graphs import SmallGraph, lines, three_nodes
from torch import nn
from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from dni_fx.passes.add_context import AddContext
from dni_fx.passes.add_synthesizers import AddSynthesizers
from dni_fx.passes.add_time_cuts import AddTimeCuts
from dni_fx.passes.apply import run
from dni_fx.passes.copy_written import CopyWritten
from dni_fx.passes.cut_states_off import CutStatesOff
from dni_fx.passes.decouple_cuts import DecoupleCuts
from dni_fx.passes.mark_segments import MarkSegments
from dni_fx.plans import StateTensor, TimeCutPlan


class Rename(PassBase):
    """Gives a captured node another name."""

    def call(self, graph_module: GraphModule) -> PassResult:
        next(node for node in graph_module.graph.nodes if node.name == "r")._rename("other")
        return PassResult(graph_module, True)


class Misplace(PassBase):
    """Puts a user before the value that it uses."""

    def call(self, graph_module: GraphModule) -> PassResult:
        nodes = {node.name: node for node in graph_module.graph.nodes}
        nodes["h"].prepend(nodes["r"])
        return PassResult(graph_module, True)


def test_the_module_runs_the_new_graph() -> None:
    module, x = three_nodes(), torch.rand(5, 3)
    expected = module(x)
    run(module, [MarkSegments(["h"]), AddSynthesizers([["h"]]), DecoupleCuts(), CopyWritten()])
    assert "decouple" in module.code
    assert torch.equal(module(x), expected)
    module(x).sum().backward()
    for parameter in module.second.parameters():
        assert parameter.grad is not None


def test_every_pass_of_a_rewrite_leaves_a_legal_graph() -> None:
    """Two cuts in depth, a write in place above one, and a cut in time."""
    small = SmallGraph(a=nn.Linear(3, 3), b=nn.Linear(3, 3))
    x, state = small.input("x"), small.input("state")
    h = small.call(torch.add, small.module("a", x, name="p"), state, name="h", storages={7})
    r = small.call(torch.relu, small.module("b", h, name="q"), name="r", storages={8})
    s = small.call(torch.sin_, r, name="s", storages={8}, mutates={8})
    module = small.give((small.call(torch.add, s, h, name="y"), h))
    given = torch.rand(2, 3), torch.rand(2, 3)
    expected = module(*given)
    state_tensor = StateTensor("state", (), (1,), 1, (2, 3), "float32", 0)
    run(
        module,
        [
            MarkSegments(["h", "r"]),
            CutStatesOff([1]),
            AddContext(),
            AddSynthesizers([["h"], ["h", "r"]]),
            DecoupleCuts(),
            CopyWritten(),
            AddTimeCuts([TimeCutPlan((state_tensor,))]),
        ],
    )
    assert sum("writable" in line for line in lines(module)) == 1
    torch.testing.assert_close(module(*given), expected)
    module(*given)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_the_broken_rule_and_the_last_pass_are_named() -> None:
    with pytest.raises(AssertionError, match="after Rename: captured_names_stay: captured node r is now named other"):
        run(three_nodes(), [MarkSegments([]), Rename(), MarkSegments([])])


def test_the_graph_is_linted_after_each_pass() -> None:
    with pytest.raises(RuntimeError, match="used before it has been defined"):
        run(three_nodes(), [Misplace(), MarkSegments([])])
