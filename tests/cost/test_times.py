"""Measured times of nodes, and plans in seconds."""

import pytest
import torch
from torch import nn

import dni_fx
from dni_fx.capture.frontends import capture
from dni_fx.cost.times import node_times
from dni_fx.model.inputs import to_inputs


@pytest.mark.parametrize("frontend", ["fx", "export", "modules"])
def test_measured_times(frontend: str) -> None:
    torch.manual_seed(0)
    big, small = nn.Linear(512, 512), nn.Linear(512, 4)
    model = nn.Sequential(nn.Linear(8, 512), nn.BatchNorm1d(512), big, nn.ReLU(), small)
    state = {name: t.clone() for name, t in model.state_dict().items()}
    example = to_inputs(torch.rand(512, 8), None)
    module = capture(model, example, frontend).module
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    generator = torch.get_rng_state()
    times = node_times(module, example)
    assert set(times) == {node.name for node in module.graph.nodes}
    assert all(t >= 0 for pair in times.values() for t in pair)
    name = {"fx": "_2", "modules": "_2", "export": "linear_1"}[frontend]
    last = {"fx": "_4", "modules": "_4", "export": "linear_2"}[frontend]
    assert times[name][0] > times[last][0] and times[name][1] > times[last][1]
    assert all(t.equal(state[n]) for n, t in model.state_dict().items()), "no trace is left"
    assert generator.equal(torch.get_rng_state())
    assert all(p.grad is not None and bool((p.grad == 1).all()) for p in model.parameters())


def test_a_profiled_plan_is_in_seconds() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    plan = dni_fx.plan(model, torch.rand(3, 4), cuts=2, profile=True)
    assert plan.forecast is not None and plan.forecast.unit == "s"
    assert 0 < plan.forecast.backprop.step < 1
    assert dni_fx.Plan.from_json(plan.to_json()) == plan
