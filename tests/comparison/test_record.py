"""The figures of a comparison."""

import json
import math

import pytest

from dni_fx.comparison import Comparison, Record


def test_final_loss_and_difference() -> None:
    backprop = Record("backprop", 1, [9.0] * 80 + [1.0, 2.0] * 10, [1.0] * 100)
    cut = Record("2 segments", 2, [9.0] * 80 + [1.5, 2.5] * 10, [2.0] * 100)
    found = Comparison((backprop, Record("checkpointing", failed="no blocks"), cut), 100, 100, 8, "mse_loss", True)
    assert backprop.loss_after(100) == 1.5 and cut.loss_after(100) == 2.0
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
    assert found.difference(cut).error == pytest.approx(2 * math.sqrt(10 / 9) / math.sqrt(10))


def test_few_steps() -> None:
    record = Record("backprop", 1, [3.0], [math.nan])
    found = Comparison((record,), 1, 10, 8, "mse_loss", True)
    assert math.isnan(record.step_seconds) and math.isnan(found.loss_in_equal_time(record))
    assert not found.difference(record).is_clear and found.interrupted
    json.dumps(found.to_dict(), allow_nan=False)
