"""Checks of dtypes, and copies of a buffer onto itself, are dropped; other copies stay."""

import torch
from small_graphs import SmallGraph, lines, runs
from torch import nn

from dni_fx.passes.drop_export_checks import DropExportChecks

ATEN = torch.ops.aten


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("n", torch.zeros(()))
        self.register_buffer("last", torch.zeros(()))


def test_checks_are_dropped() -> None:
    small = SmallGraph()
    x = small.input("x")
    small.call(ATEN._assert_tensor_metadata.default, x, None, None, torch.float32)
    module = small.give(small.call(ATEN.sin.default, x, name="y"))
    assert DropExportChecks()(module).modified
    assert lines(module) == ["x", "y = sin.default(x)", "return y"]


def test_a_copy_of_a_buffer_onto_itself_is_dropped() -> None:
    """What torch.export writes for `self.n += 1; self.last.copy_(x); return x * self.n`."""
    small = SmallGraph(counter=Counter())
    n, last, x = small.attribute("counter.n"), small.attribute("counter.last"), small.input("x")
    added = small.call(ATEN.add_.Tensor, n, 1, name="added")
    y = small.call(ATEN.mul.Tensor, x, added, name="y")
    small.call(ATEN.copy_.default, n, added, name="own")
    small.call(ATEN.copy_.default, last, added, name="other")
    module = small.give(y)
    assert DropExportChecks()(module).modified
    assert lines(module) == [
        "counter_n = counter.n",
        "counter_last = counter.last",
        "x",
        "added = add_.Tensor(counter_n, 1)",
        "y = mul.Tensor(x, added)",
        "other = copy_.default(counter_last, added)",
        "return y",
    ]
    assert [float(runs(module, torch.ones(()))) for _ in range(2)] == [1.0, 2.0]
    assert float(module.counter.last) == 2.0


def test_a_copy_of_a_new_value_stays() -> None:
    """`add` gives new memory, so this copy is what changes the buffer."""
    small = SmallGraph(counter=Counter())
    n = small.attribute("counter.n")
    small.call(ATEN.copy_.default, n, small.call(ATEN.add.Tensor, n, 1), name="own")
    module = small.give(small.input("x"))
    assert not DropExportChecks()(module).modified
    assert len(lines(module)) == 5
