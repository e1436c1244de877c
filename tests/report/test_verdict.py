"""The sentences before the tables of a plan."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from windows import Lstm, cut

import dni_fx
from dni_fx.plans import Outlook, Plan
from dni_fx.report.verdict import plan_verdict


@pytest.fixture(scope="module")
def plan() -> Plan:
    layers = [layer for _ in range(12) for layer in (nn.Linear(16, 16), nn.Tanh())]
    return dni_fx.plan(nn.Sequential(*layers), torch.rand(1024, 16), cuts=3)


def with_outlooks(plan: Plan, cut: Outlook, checkpoint: Outlook | None) -> str:
    assert plan.forecast is not None
    return " ".join(plan_verdict(replace(plan, forecast=replace(plan.forecast, cut=cut, checkpoint=checkpoint))))


def test_memory_and_time(plan: Plan) -> None:
    forecast = plan.forecast
    assert forecast is not None
    before, static = forecast.backprop, forecast.resident_bytes + forecast.synthesizer_bytes
    half = (before.peak_bytes - forecast.resident_bytes) // 2
    light = Outlook(half + static, 1.5 * before.step, before.slowest / 2)
    lighter, heavier = replace(light, peak_bytes=static), replace(before, peak_bytes=2 * before.peak_bytes)
    assert "50 %, and to take 1.50 times its time" in with_outlooks(plan, light, None)
    assert "is exact: take it on one device; with a device for each segment, a step takes 0.50 times" in with_outlooks(
        plan, light, lighter
    )
    assert "take it on one device" not in with_outlooks(plan, light, heavier)
    assert "save no memory; with a device" in with_outlooks(plan, replace(heavier, slowest=0.0), light)
    assert "save less than 5 %" in with_outlooks(plan, heavier, light)


def test_how_it_learns(plan: Plan) -> None:
    assert "Synthesizers predict the gradients" in plan_verdict(plan)[1]
    net = nn.Sequential(*[layer for _ in range(4) for layer in (nn.Linear(8, 8), nn.Tanh())])
    exits = dni_fx.plan(net, torch.rand(4, 8), cuts=["3"], loss="mse_loss")
    assert "Exits through the model's own later layers" in plan_verdict(exits)[1]
    assert plan_verdict(replace(plan, cuts=())) == [f"The net has no cuts: {plan.why}."]
    assert plan_verdict(cut(Lstm).dni.plan)[0].startswith("Cut in time")
