"""Messages about arguments that a graph fixes."""

from inspect import Parameter
from typing import Any

import numpy as np
import pytest
import torch

from dni_fx.model import other_argument, same_value, shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.ones(2, 3), "a tensor of shape [2, 3]"),
        ({"a": 1, "b": 2}, "a dict with the keys 'a', 'b'"),
        ({}, "a dict with the keys (none)"),
        ((1, 2), "a tuple of 2"),
        ("x" * 100, f"'{'x' * 59}..."),
        (Parameter.empty, "not given"),
    ],
)
def test_shown(value: object, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize(
    ("value", "captured", "same"),
    [
        (1.0, 1.0, True),
        (1.0, 2.0, False),
        (float("nan"), float("nan"), True),
        (torch.tensor(1.0), 1.0, False),
        (np.ones(2), np.ones(2), False),
    ],
)
def test_same_value(value: Any, captured: Any, same: bool) -> None:
    assert same_value(value, captured) is same


def test_the_way_out() -> None:
    """A tensor can take the place of a float, not of a flag."""
    assert "an example that gives a tensor for tau" in str(other_argument("tau", "1.0", 0.5, was_float=True))
    for flag in (other_argument("tau", "1.0", None, was_float=True), other_argument("flag", "False", True)):
        assert "a tensor" not in str(flag) and "an example like this call" in str(flag)
