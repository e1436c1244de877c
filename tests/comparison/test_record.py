"""The figures of a comparison."""

import json
import math
import statistics

import pytest

from dni_fx.comparison import Comparison, Record


def test_final_loss_and_difference() -> None:
    backprop = Record("backprop", 1, [9.0] * 80 + [1.0, 2.0] * 10, [1.0] * 100)
    cut = Record("2 segments", 2, [9.0] * 80 + [1.5, 2.5] * 10, [2.0] * 100)
    found = Comparison((backprop, Record("checkpointing", failed="no blocks"), cut), 100, 100, 8, "mse_loss", True)
    assert found.final_loss(backprop) == 1.5 and found.final_loss(cut) == 2.0
    difference = found.difference(cut)
    assert difference.value == 0.5 and difference.error == 0.0 and difference.is_clear
    assert found.loss_in_equal_time(backprop) == 1.5 and found.loss_in_equal_time(cut) == 9.0
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["ways"][2]["final"]["difference"] == {"value": 0.5, "error": 0.0}


def test_noise_is_no_difference() -> None:
    backprop = Record("backprop", 1, [1.0] * 50)
    cut = Record("2 segments", 2, [1.0 + (-1) ** i for i in range(50)])
    found = Comparison((backprop, Record("checkpointing"), cut), 50, 50, 8, "mse_loss", True)
    assert not found.difference(cut).is_clear
    alternating = Record("3 segments", 3, [1.0 + (i // 2 % 2) for i in range(50)])  # blocks of two: 0, 1, 0, 1, 0
    error = found.difference(alternating).error
    assert error == pytest.approx(2.776 * statistics.stdev([0, 1, 0, 1, 0]) / math.sqrt(5))


def test_the_fastest_way_has_its_final_loss_in_equal_time() -> None:
    for seconds in (0.1, 0.3, 0.7, 1.1, 1.7):
        records = tuple(Record(name, 2, [float(i) for i in range(100)], [seconds] * 100) for name in ("a", "b"))
        found = Comparison(records, 100, 100, 8, "mse_loss", True)
        assert found.loss_in_equal_time(records[1]) == found.final_loss(records[1])


def test_few_steps() -> None:
    record = Record("backprop", 1, [3.0], [math.nan])
    found = Comparison((record,), 1, 10, 8, "mse_loss", True)
    assert math.isnan(record.step_seconds) and math.isnan(found.loss_in_equal_time(record))
    assert not found.difference(record).is_clear and found.interrupted
    json.dumps(found.to_dict(), allow_nan=False)
