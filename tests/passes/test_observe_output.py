"""`dni.outcome` is called on the first output that carries gradient."""

import torch
from small_graphs import SmallGraph, lines, records

from dni_fx.passes.add_context import AddContext
from dni_fx.passes.observe_output import ObserveOutput


def test_the_first_output_that_carries_gradient() -> None:
    small = SmallGraph()
    x = small.input("x")
    mask = small.call(torch.sign, x, name="mask", carries_gradient=False)
    h = small.call(torch.relu, x, name="h", segment=1)
    r = small.call(torch.sin, h, name="r")
    for node in (mask, h, r):
        node.meta["val"] = torch.zeros(2)
    module = small.give((mask, h, r))
    AddContext()(module)
    assert ObserveOutput()(module).modified
    assert lines(module)[-2:] == ["dni_outcome = dni.outcome(h, dni_context)", "return (mask, h, r)"]
    assert records(module, "role")["dni_outcome"] == "outcome"
    assert records(module, "segment")["dni_outcome"] == 1


def test_no_output_carries_gradient() -> None:
    small = SmallGraph()
    module = small.give(small.input("x"))
    AddContext()(module)
    assert not ObserveOutput()(module).modified
    assert lines(module) == ["x", "dni_context", "return x"]
