"""Texts of plain values, and the comparison of what a model's code read with the present values."""

import copy
import pickle
from enum import Enum
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dni_fx.model import Read, Reads, text_of, value_of


class Colour(Enum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        (True, "True"),
        (0.5, "0.5"),
        (np.float64(0.5), "0.5"),
        (np.bool_(True), "True"),
        (float("nan"), "nan"),
        ("a", "'a'"),
        (Colour.RED, "Colour.RED"),
        (torch.float16, "torch.float16"),
        ([1, (2.0, None)], "[1, (2.0, None,)]"),
        ({"a": {3}}, "{'a': {3}}"),
        (partial(round, ndigits=1), "partial(builtins.round, (,), {'ndigits': 1})"),
        (nn.functional.gelu, text_of(nn.functional.gelu)),
        (object(), None),
        (torch.ones(2), None),
        ([torch.ones(2)], None),
        (list(range(20_000)), None),
        (np.array([1.0, 2.0]), "array([1.0, 2.0], float64)"),
    ],
)
def test_text_of(value: object, text: str | None) -> None:
    assert text_of(value) == text


def model() -> Any:
    made: Any = nn.Sequential(nn.Linear(2, 2))
    made.tau, made.sizes, made.hp, made.child = 1.0, [1.0, 2.0], {"tau": 1.0, "lr": 0.1}, nn.Dropout(0.5)
    return made


def read(name: str, text: str, *steps: tuple[str, Any], module: str = "") -> Read:
    return Read(module, (("attribute", name), *steps), text)


READS = (
    read("tau", "1.0"),
    read("sizes", "[1.0, 2.0]"),
    read("hp", "1.0", ("item", "tau")),
    read("p", "0.5", module="child"),
    read("flag", ""),
)


def set_item(owner: Any, key: Any, value: Any) -> None:
    owner[key] = value


@pytest.mark.parametrize(
    ("change", "name", "now"),
    [
        (lambda m: setattr(m, "tau", 2.0), "tau", "2.0"),
        (lambda m: setattr(m, "tau", torch.ones(2)), "tau", "a tensor of shape [2]"),
        (lambda m: delattr(m, "tau"), "tau", ""),
        (lambda m: set_item(m.sizes, 1, 3.0), "sizes", "[1.0, 3.0]"),
        (lambda m: set_item(m.hp, "tau", 2.0), "hp['tau']", "2.0"),
        (lambda m: setattr(m, "hp", {"tau": 2.0}), "hp['tau']", "2.0"),
        (lambda m: setattr(m.child, "p", 0.1), "child.p", "0.1"),
        (lambda m: setattr(m, "flag", True), "flag", "True"),
    ],
)
@pytest.mark.parametrize("before", ["compared", "new"])
def test_a_change(change: Any, name: str, now: str, before: str) -> None:
    """The same, whether the values were compared before or not; a copy has the values of its own model."""
    changed, reads = model(), Reads(READS)
    if before == "compared":
        assert reads.changed(changed) is None
    change(changed)
    for same in (reads, copy.deepcopy(reads), pickle.loads(pickle.dumps(reads))):
        found = same.changed(changed)
        assert found is not None and (str(found[0]), found[1]) == (name, now)
        assert same.changed(model()) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "tau", 1),
        lambda m: setattr(m, "sizes", [1.0, 2.0]),
        lambda m: set_item(m.hp, "lr", 0.2),
        lambda m: setattr(m, "hp", {"tau": np.float64(1.0)}),
        lambda m: setattr(m, "other", 3),
    ],
)
def test_no_change(change: Any) -> None:
    same, reads = model(), Reads(READS)
    assert reads.changed(same) is None
    change(same)
    assert reads.changed(same) is None and reads.changed(same) is None


def test_a_long_list_and_an_array() -> None:
    made = model()
    made.sizes, made.tau = list(range(1000)), np.ones(2)
    reads = Reads([read("sizes", str(text_of(made.sizes))), read("tau", str(text_of(made.tau)))])
    assert len(reads[0].text) < 100 and reads.changed(made) is None
    for name, owner in (("sizes", made.sizes), ("tau", made.tau)):
        before = owner[1]
        owner[1] = 7
        found = reads.changed(made)
        assert found is not None and str(found[0]) == name
        owner[1] = before
        assert reads.changed(made) is None
    made.tau = np.ones(2)
    assert reads.changed(made) is None


def test_nan_is_no_change() -> None:
    made = model()
    made.tau = float("nan")
    reads = Reads([read("tau", "nan")])
    assert reads.changed(made) is None
    made.tau = float("nan")
    assert reads.changed(made) is None


def test_values_that_another_model_lacks() -> None:
    """A net that was loaded without its model has only the values that were set on it."""
    net: Any = nn.Linear(2, 2)
    reads = Reads(READS)
    assert reads.changed(net, complete=False) is None
    net.tau = 2.0
    found = reads.changed(net, complete=False)
    assert found is not None and str(found[0]) == "tau"
    assert value_of(net, READS[3]) == (None, "")


def test_a_global_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "TAU", 1.0)
    found = Read("", (("global", __name__), ("item", "TAU")), "1.0")
    assert str(found) == f"TAU (a global variable of {__name__})" and not found.has_text_form
    reads = Reads([found])
    assert reads.changed(model()) is None
    monkeypatch.setitem(globals(), "TAU", 2.0)
    assert reads.changed(model()) == (found, "2.0")
    monkeypatch.delitem(globals(), "TAU")  # as in another process
    assert reads.changed(model()) is None


def test_a_text_form() -> None:
    assert READS[2].has_text_form
    assert not read("hp", "1", ("item", Colour.RED)).has_text_form


def test_lambdas_of_one_line_differ() -> None:
    pairs = [(lambda x: x * 2, lambda x: x * 3), (lambda x: x.sin(), lambda x: x.cos())]
    for one, other in pairs:
        assert text_of(one) != text_of(other) and text_of(one) == text_of(one)
