"""The graph gives its states detached."""

import torch
from small_graphs import SmallGraph, lines, records, runs

from dni_fx.passes.cut_states_off import CutStatesOff
from dni_fx.passes.mark_segments import MarkSegments


def test_a_state_is_detached_where_it_is_made() -> None:
    small = SmallGraph()
    x = small.input("x")
    h = small.call(torch.sin, x, name="h")
    module = small.give((small.call(torch.relu, h, name="y"), [h]))
    MarkSegments(["h"])(module)
    CutStatesOff([1])(module)
    assert lines(module) == ["x", "h = sin(x)", "h_detached = .detach(h)", "y = relu(h)", "return (y, [h_detached])"]
    assert records(module, "role")["h_detached"] == "detach"
    assert records(module, "segment")["h_detached"] == 0 and records(module, "cut")["h_detached"] is None
    y, (state,) = runs(module, torch.rand(3, requires_grad=True))
    assert y.requires_grad and not state.requires_grad


def test_an_output_that_is_the_state_too_keeps_its_gradient() -> None:
    small = SmallGraph()
    h = small.call(torch.sin, small.input("x"), name="h")
    module = small.give((h, h))
    MarkSegments([])(module)
    CutStatesOff([1])(module)
    assert lines(module) == ["x", "h = sin(x)", "h_detached = .detach(h)", "return (h, h_detached)"]


def test_a_state_that_the_model_returns_unchanged() -> None:
    """Its detach comes after all inputs, as a graph wants."""
    small = SmallGraph()
    h, x = small.input("h"), small.input("x")
    module = small.give((small.call(torch.relu, x, name="y"), h))
    MarkSegments([])(module)
    CutStatesOff([1])(module)
    assert lines(module) == ["h", "x", "h_detached = .detach(h)", "y = relu(x)", "return (y, h_detached)"]
