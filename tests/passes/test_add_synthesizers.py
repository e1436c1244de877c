"""Each crossing tensor gets a detach and a call of its synthesizer, at the end of the segment below the cut."""

import torch
from small_graphs import SmallGraph, lines, records, runs, three_nodes

from dni_fx.passes.add_context import AddContext
from dni_fx.passes.add_synthesizers import AddSynthesizers
from dni_fx.passes.mark_segments import MarkSegments


def test_one_tensor() -> None:
    module = three_nodes()
    x = torch.rand(5, 3)
    before = module(x)
    MarkSegments(["h"])(module)
    AddSynthesizers([["h"]])(module)
    assert lines(module) == [
        "x",
        "h = first(x)",
        "h_detached = .detach(h)",
        "h_synthetic = dni.cut0_h(h_detached)",
        "r = relu(h)",
        "y = second(r)",
        "return y",
    ]
    assert records(module, "role")["h_detached"] == "detach"
    assert records(module, "role")["h_synthetic"] == "synthesizer"
    for field in ("segment", "cut"):
        assert records(module, field)["h_detached"] == records(module, field)["h_synthetic"] == 0
    assert torch.equal(runs(module, x), before)


def test_a_tensor_that_crosses_two_cuts_has_a_synthesizer_at_each() -> None:
    small = SmallGraph()
    h = small.call(torch.relu, small.input("x"), name="h")
    r = small.call(torch.sin, h, name="r")
    module = small.give(small.call(torch.add, r, h, name="y"))
    MarkSegments(["h", "r"])(module)
    AddSynthesizers([["h"], ["h", "r"]])(module)
    assert lines(module) == [
        "x",
        "h = relu(x)",
        "h_detached = .detach(h)",
        "h_synthetic = dni.cut0_h(h_detached)",
        "r = sin(h)",
        "h_detached_1 = .detach(h)",
        "h_synthetic_1 = dni.cut1_h(h_detached_1)",
        "r_detached = .detach(r)",
        "r_synthetic = dni.cut1_r(r_detached)",
        "y = add(r, h)",
        "return y",
    ]
    assert records(module, "cut")["h_synthetic_1"] == 1


def test_the_context_is_passed_to_the_synthesizer() -> None:
    module = three_nodes()
    MarkSegments(["h"])(module)
    AddContext()(module)
    AddSynthesizers([["h"]])(module)
    assert "h_synthetic = dni.cut0_h(h_detached, dni_context)" in lines(module)
