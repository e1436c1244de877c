"""The differences between two plans: each field that differs, and no other."""

from dataclasses import replace

import torch
from torch import nn

import dni_fx
from dni_fx.plans import Plan
from dni_fx.report.plan_diff import plan_changes

X = torch.rand(64, 6)


def model() -> nn.Module:
    return nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(6, 6), nn.Tanh())))


def changes(before: Plan, after: Plan) -> dict[str, tuple[str, str]]:
    return {name: (was, now) for name, was, now in plan_changes(before, after)}


def test_equal_plans() -> None:
    plan = dni_fx.plan(model(), X, cuts=2)
    assert plan_changes(plan, Plan.from_json(plan.to_json())) == []


def test_other_cuts() -> None:
    found = changes(dni_fx.plan(model(), X, cuts=["_1"]), dni_fx.plan(model(), X, cuts=["_1", "_3"]))
    assert found["segments"] == ("2", "3")
    assert found["cut 1"] == ("-", "after _3\n_3 64x6 float32")
    assert "cut 0" not in found and "model" not in found and "graph" not in found and "cut: peak memory" in found


def test_other_settings() -> None:
    before = dni_fx.transform(model(), X, cuts=2, classes=6).dni.plan
    training = dni_fx.Training(warmup=3)
    after = dni_fx.transform(
        model(), X, cuts=2, synthesizer="mlp", unlock="none", training=training, classes=6
    ).dni.plan
    found = changes(before, after)
    assert found["unlock"] == ("backward", "none") and found["warmup"] == ("0", "3")
    assert [now for name, (_, now) in found.items() if name.startswith("synthesizer ")] == ["mlp"]
    assert changes(dni_fx.plan(model(), X, cuts=2), before)["rewritten"] == ("no", "yes")


def test_a_field_without_a_row() -> None:
    plan = dni_fx.plan(model(), X, cuts=2)
    assert plan_changes(plan, replace(plan, tried=("fx: x", "export: y"))) == [("tried.0 and 1 more", "-", "fx: x")]
    assert plan.verdict is not None
    other = replace(plan, verdict=replace(plan.verdict, places=99))
    assert plan_changes(plan, other) == [("verdict.places", str(plan.verdict.places), "99")]
