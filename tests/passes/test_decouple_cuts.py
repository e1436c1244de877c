"""One call of the boundary at each cut, for all tensors that cross the cut."""

import pytest
import torch
from small_graphs import SmallGraph, lines, records, runs, three_nodes
from torch.fx import GraphModule

from dni_fx import ops
from dni_fx.passes.add_synthesizers import AddSynthesizers
from dni_fx.passes.decouple_cuts import DecoupleCuts
from dni_fx.passes.mark_segments import MarkSegments


def with_synthesizers(module: GraphModule, cuts: dict[str, list[str]]) -> GraphModule:
    MarkSegments(list(cuts))(module)
    AddSynthesizers(list(cuts.values()))(module)
    return module


@pytest.mark.parametrize("boundary", [ops.decouple, ops.inject])
def test_one_cut(boundary: object) -> None:
    module = with_synthesizers(three_nodes(), {"h": ["h"]})
    x = torch.rand(5, 3)
    before = runs(module, x)
    DecoupleCuts(boundary)(module)
    name = boundary.__name__
    assert lines(module) == [
        "x",
        "h = first(x)",
        "h_detached = .detach(h)",
        "h_synthetic = dni.cut0_h(h_detached)",
        "dni_segment0 = dni.segment0",
        f"{name} = {name}((h,), (h_detached,), (h_synthetic,), dni_segment0)",
        f"h_next = getitem({name}, 0)",
        "r = relu(h_next)",
        "y = second(r)",
        "return y",
    ]
    for node in ("dni_segment0", name, "h_next"):
        assert records(module, "role")[node] == "boundary"
        assert records(module, "segment")[node] == records(module, "cut")[node] == 0
    assert torch.equal(runs(module, x), before)
    assert torch.equal(module.eval()(x), before)


def test_a_tensor_that_crosses_two_cuts() -> None:
    """The second boundary takes the result of the first; users below a cut keep the value."""
    small = SmallGraph()
    h = small.call(torch.relu, small.input("x"), name="h")
    r = small.call(torch.sin, h, name="r")
    module = with_synthesizers(small.give(small.call(torch.add, r, h, name="y")), {"h": ["h"], "r": ["h", "r"]})
    DecoupleCuts()(module)
    assert lines(module)[4:] == [
        "dni_segment0 = dni.segment0",
        "decouple = decouple((h,), (h_detached,), (h_synthetic,), dni_segment0)",
        "h_next = getitem(decouple, 0)",
        "r = sin(h_next)",
        "h_detached_1 = .detach(h_next)",
        "h_synthetic_1 = dni.cut1_h(h_detached_1)",
        "r_detached = .detach(r)",
        "r_synthetic = dni.cut1_r(r_detached)",
        "dni_segment1 = dni.segment1",
        "decouple_1 = decouple((h_next, r), (h_detached_1, r_detached), (h_synthetic_1, r_synthetic), dni_segment1)",
        "h_next_1 = getitem(decouple_1, 0)",
        "r_next = getitem(decouple_1, 1)",
        "y = add(r_next, h_next_1)",
        "return y",
    ]
