"""Values that a function reads from outside."""

import math
from typing import Any

from dni_fx.capture.global_names import attribute_names, read_by_function

TAU = 1.0
NESTED: dict[str, Any] = {"a": {"b": 2.0}, "c": 3.0}


def calls(x: float) -> float:
    return called(x) * math.pi * len(NESTED["a"])


def called(x: float) -> float:
    return (lambda: x * TAU)() * NESTED["a"]["b"] * absent(x)  # type: ignore[name-defined] # noqa: F821


def test_read_by_function() -> None:
    """Through functions of the same file and functions in functions; no constants of libraries."""
    found = dict(read_by_function(calls, ()))
    start = ("global", __name__)
    assert found == {
        (start, ("item", "called")): called,
        (start, ("item", "TAU")): 1.0,
        (start, ("item", "NESTED"), ("item", "a")): {"b": 2.0},
        (start, ("item", "NESTED"), ("item", "a"), ("item", "b")): 2.0,
    }


def test_attribute_names() -> None:
    assert {"TAU", "NESTED", "absent"} == attribute_names(called)
