"""Dataclasses from JSON: what has another type than its field is refused, with its place."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from dni_fx.json_data import read


@dataclass(frozen=True)
class Inner:
    size: int
    share: float = 0.5


@dataclass(frozen=True)
class Outer:
    name: str
    inner: tuple[Inner, ...]
    mix: float | tuple[float, int] = 0.0
    tied: dict[str, tuple[int, ...]] = field(default_factory=dict)
    more: Inner | None = None


def test_a_value_of_each_type() -> None:
    data = {"name": "a", "inner": [{"size": 1}], "mix": [1, 2], "tied": {"w": [0, 1]}, "more": {"size": 2, "share": 1}}
    assert read(Outer, data) == Outer("a", (Inner(1),), (1, 2), {"w": (0, 1)}, Inner(2, 1))
    assert read(Outer, {"name": "a", "inner": [], "more": None}) == Outer("a", ())


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ([], r"the text is \[\], not a dict"),
        ({"name": "a"}, "the text has no entry 'inner'"),
        ({"name": 5, "inner": []}, "name is 5, not str"),
        ({"name": "a", "inner": {}}, "inner is {}, not tuple"),
        ({"name": "a", "inner": [{"size": True}]}, "inner.0.size is True, not int"),
        ({"name": "a", "inner": [{"size": 1, "color": 2}]}, "inner.0 has an entry 'color'"),
        ({"name": "a", "inner": [], "mix": [1.0]}, r"mix is \[1.0\], not"),
        ({"name": "a", "inner": [], "tied": {"w": ["x"]}}, "tied.w.0 is 'x', not int"),
        ({"name": "a", "inner": [], "more": 3}, "more is 3, not a dict"),
    ],
)
def test_wrong_types(data: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        read(Outer, data)
