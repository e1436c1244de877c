"""An exit in words."""

from dataclasses import replace

import pytest

from dni_fx.plans import CrossingTensor, ExitPlan, UnitPlan
from dni_fx.report.exits import exit_text


def planned(units: int | str, weights: str, count: int = 3, flops: int = 2_000) -> ExitPlan:
    return ExitPlan(units, weights, tuple(f"n{i}" for i in range(count)), {}, (), (), flops=flops)


@pytest.mark.parametrize(
    ("exit", "text"),
    [
        (
            planned(0, "shared"),
            "no unit and the tail, 2 kFLOPs, with the model's own weights, which it trains: n0, n1, n2",
        ),
        (
            planned(1, "readonly"),
            "the next unit and the tail, 2 kFLOPs, with the model's own weights, which it does not",
        ),
        (planned(3, "copy"), "the next 3 units and the tail, 2 kFLOPs, with copies of the weights: n0"),
        (planned("all", "fresh"), "all units and the tail, 2 kFLOPs, with new weights: n0"),
        (planned(1, "ema"), "the next unit and the tail, 2 kFLOPs, with a running mean of the weights: n0"),
    ],
)
def test_text(exit: ExitPlan, text: str) -> None:
    assert exit_text(exit).startswith(text)


def test_what_is_not_trained() -> None:
    text = exit_text(replace(planned(1, "shared"), borrowed=("norm", "head"), constant=("head",)))
    assert "with the model's own weights, which it trains (but not head): n0" in text


def test_long_lists_are_shortened() -> None:
    assert exit_text(planned(1, "shared", 8)).endswith("n0, n1, n2, n3, n4, n5, n6, n7")
    assert exit_text(planned(1, "shared", 9)).endswith("n0, n1, n2, n3, n4, ... (2 more), n7, n8")
    assert exit_text(planned(1, "shared", 30)).endswith("n0, n1, n2, n3, n4, ... (23 more), n28, n29")


def test_units_that_run_once() -> None:
    tensor = CrossingTensor("s", (4, 3), "float32", 48, -1)
    found = replace(planned(1, "shared"), unit=UnitPlan(("a", "s"), tensor, (), ()), frozen_units=True)
    start = "the next unit (frozen), which the segment above runs anyway: a, s; and the tail, 2 kFLOPs"
    assert exit_text(found).startswith(start)


def test_heads() -> None:
    heads = tuple(CrossingTensor(name, (4, 3), "float32", 48, -1) for name in ("u", "v"))
    text = exit_text(ExitPlan(0, "fresh", (), {}, (), (), heads))
    assert text == "a small head of its own for u, v, in place of the model's later layers"


def test_units_keep_the_weights_of_the_model() -> None:
    found = replace(planned(1, "copy"), borrowed=("unit", "tail"), not_copied=("unit",))
    assert "with copies of the weights behind the units: n0" in exit_text(found)
