"""A decoupled tensor is copied where the next segment writes to its memory, and only there."""

from collections.abc import Collection

import torch
from small_graphs import SmallGraph, lines, records, runs
from torch import nn
from torch.fx import GraphModule

from dni_fx.passes.add_synthesizers import AddSynthesizers
from dni_fx.passes.copy_written import CopyWritten
from dni_fx.passes.decouple_cuts import DecoupleCuts
from dni_fx.passes.mark_segments import MarkSegments


def decoupled(*, first: Collection[int] = (), second: Collection[int] = ()) -> GraphModule:
    """x -> h | r = relu_(h) | y = r + h: storage 7 is h's; each segment writes to these storages."""
    small = SmallGraph(a=nn.Linear(3, 3))
    h = small.module("a", small.input("x"), name="h", storages={7})
    r = small.call(torch.relu_ if first else torch.sigmoid, h, name="r", storages=first, mutates=first)
    module = small.give(small.call(torch.mul, r, h, name="y", mutates=second))
    MarkSegments(["h", "r"])(module)
    AddSynthesizers([["h"], ["h"] if first else ["h", "r"]])(module)
    DecoupleCuts()(module)
    return module


def test_no_write_no_copy() -> None:
    module = decoupled()
    before = lines(module)
    assert not CopyWritten()(module).modified
    assert lines(module) == before


def test_a_write_to_other_memory_makes_no_copy() -> None:
    assert not CopyWritten()(decoupled(first={8})).modified


def test_all_users_above_the_cut_use_the_copy() -> None:
    module = decoupled(first={7})
    assert CopyWritten()(module).modified
    text = lines(module)
    assert text[text.index("h_next = getitem(decouple, 0)") :][:5] == [
        "h_next = getitem(decouple, 0)",
        "h_next_copy = writable(h_next, h_synthetic)",
        "r = relu_(h_next_copy)",
        "h_detached_1 = .detach(h_next_copy)",
        "h_synthetic_1 = dni.cut1_h(h_detached_1)",
    ]
    assert "decouple_1 = decouple((h_next_copy,), (h_detached_1,), (h_synthetic_1,), dni_segment1)" in text
    assert sum("writable" in line for line in text) == 1
    assert records(module, "role")["h_next_copy"] == "copy"
    assert records(module, "segment")["h_next_copy"] == records(module, "cut")["h_next_copy"] == 0


def test_a_write_two_segments_above_copies_there() -> None:
    """The origin of a value is known through both cuts."""
    module = decoupled(second={7})
    CopyWritten()(module)
    assert [line for line in lines(module) if "writable" in line or line.startswith("y")] == [
        "h_next_1_copy = writable(h_next_1, h_synthetic_1)",
        "y = mul(r_next, h_next_1_copy)",
    ]


def test_the_copy_makes_the_write_legal() -> None:
    small = SmallGraph(a=nn.Linear(3, 3))
    h = small.module("a", small.input("x"), name="h", storages={7})
    module = small.give(small.call(torch.relu_, h, name="r", storages={7}, mutates={7}))
    x = torch.rand(5, 3)
    expected = module(x)
    MarkSegments(["h"])(module)
    AddSynthesizers([["h"]])(module)
    DecoupleCuts()(module)
    CopyWritten()(module)
    runs(module, x).sum().backward()
    assert torch.equal(module(x), expected)
