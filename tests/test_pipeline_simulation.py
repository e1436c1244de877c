"""The simulation of benchmarks/pipeline_simulation.py against closed forms."""

import importlib
from pathlib import Path
from typing import Any

import pytest

FORWARD, BACKWARD, LINK = 1.0, 2.0, 0.25


@pytest.fixture
def simulation(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("pipeline_simulation")


@pytest.mark.parametrize("p", [2, 4, 7])
@pytest.mark.parametrize("m", [1, 4, 16])
def test_bubble_of_schedules_with_a_flush(simulation: Any, p: int, m: int) -> None:
    for schedule in (simulation.gpipe, simulation.one_f_one_b):
        step = schedule(p, m, simulation.Times(FORWARD, BACKWARD))
        assert step.bubble == pytest.approx((p - 1) / (m + p - 1))
        assert step.seconds == pytest.approx((m + p - 1) * (FORWARD + BACKWARD))


def test_a_link_is_in_the_way_of_gpipe_twice(simulation: Any) -> None:
    """The first micro-batch goes through all links, and the last gradient comes back."""
    step = simulation.gpipe(4, 8, simulation.Times(FORWARD, BACKWARD, LINK))
    assert step.seconds == pytest.approx((8 + 3) * (FORWARD + BACKWARD) + 2 * 3 * LINK)


@pytest.mark.parametrize("p", [2, 4, 7])
def test_zbv_has_no_bubble(simulation: Any, p: int) -> None:
    """From 2 p - 1 micro-batches on."""
    times = simulation.Times(FORWARD, BACKWARD)
    assert simulation.zbv(p, 2 * p - 2, times).bubble > 0.01
    for m in (2 * p - 1, 4 * p):
        assert simulation.zbv(p, m, times).bubble == pytest.approx(0)


@pytest.mark.parametrize("p", [2, 4, 7])
def test_two_buffered_weights_are_1f1b_without_a_flush(simulation: Any, p: int) -> None:
    """Its steady state is the time that 1F1B takes for more micro-batches."""
    times = simulation.Times(FORWARD, BACKWARD, LINK)
    more = simulation.one_f_one_b(p, 40 * p, times).seconds - simulation.one_f_one_b(p, 20 * p, times).seconds
    step = simulation.two_buffered_weights(p, 20 * p, times)
    assert step.seconds == pytest.approx(more)
    assert simulation.two_buffered_weights(p, p - 1, times) is None


def test_decoupled_computes_all_the_time(simulation: Any) -> None:
    step = simulation.decoupled(8, simulation.Times(FORWARD, BACKWARD, LINK), 0.1)
    assert (step.seconds, step.bubble) == (pytest.approx(8 * 3.3), 0)
