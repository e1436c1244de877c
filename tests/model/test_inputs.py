"""Example inputs that are given."""

from typing import Any

import numpy as np
import pytest
import torch

import dni_fx
from dni_fx.errors import DniFxError
from dni_fx.model.inputs import describe, to_inputs


def test_describe() -> None:
    inputs = to_inputs((torch.ones(2, 3), 4, None, [torch.ones(1), torch.tensor(2)]), {"flag": True})
    assert describe(inputs) == ("0: 2x3 float32", "1: 4", "2: None", "3: 1 float32, scalar int64", "flag: True")


def test_given() -> None:
    x = torch.ones(2)
    assert to_inputs(x, None).args == (x,)
    assert to_inputs([x, 3], None).args == (x, 3)
    assert to_inputs(None, {"a": x}) == to_inputs((), {"a": x})
    assert [t is x for t in to_inputs(({"deep": [x]}, 3), {"y": x}).tensors()] == [True, True]
    mapped = to_inputs(({"deep": [x]}, 3), None).map(lambda t: t + 1)
    assert mapped.args[0]["deep"][0].tolist() == [2, 2]
    assert mapped.args[1] == 3


@pytest.mark.parametrize("make", [lambda a: a, lambda a: [a], lambda a: ({"deep": (a,)},)])
def test_arrays_are_no_tensors(make: Any) -> None:
    with pytest.raises(DniFxError) as caught:
        to_inputs(make(np.zeros((400, 8))), None)
    assert "hold <numpy.ndarray of shape [400, 8]>, which is no torch tensor" in str(caught.value)
    with pytest.raises(DniFxError, match="ndarray"):
        to_inputs(None, {"x": np.zeros(3)})
    assert to_inputs(np.float64(3), None).args == (3.0,)


def test_large_arguments_are_described_briefly() -> None:
    (line,) = describe(to_inputs(("x" * 9999,), None))
    assert len(line) < 100
    model = torch.nn.Linear(3, 3)
    for example in ("x" * 9999, list(range(9999)), {"a": "y" * 9999}, object(), torch.nn.ReLU()):
        with pytest.raises(DniFxError) as caught:
            dni_fx.transform(model, example)
        assert len(str(caught.value)) < 300
