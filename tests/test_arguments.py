"""Kinds and ranges of public arguments: each is refused at once, by one line that names the argument."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from nets import two_layers
from one_cut import transformed

import dni_fx
from dni_fx.arguments import KINDS, MOST, check_arguments
from dni_fx.errors import DniFxError

X = torch.rand(4, 6)
NUMBERS = ("mix", "classes", "context_size", "accumulate", "memory_budget", "synthesizer_share", "cuts")
SWITCHES = ("profile", "verify")
NAMES = ("unlock", "objective", "frontend", "step")


def message(call: Callable[[], object]) -> str:
    with pytest.raises(DniFxError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400
    return text


@pytest.mark.parametrize("name", [*inspect.signature(dni_fx.transform).parameters])
def test_every_argument_of_transform_is_checked(name: str) -> None:
    if name == "example_inputs":
        return  # a model may take any object
    arguments: dict[str, Any] = {"model": two_layers(), "example_inputs": X, name: object()}
    assert f"{name}=<object>" in message(lambda: dni_fx.transform(**arguments))
    if name in inspect.signature(dni_fx.plan).parameters:
        assert f"{name}=<object>" in message(lambda: dni_fx.plan(**arguments))


WRONG: list[tuple[str, Any]] = [
    *[(name, value) for name in NUMBERS for value in (True, math.nan, math.inf, -1.5, [3.0], "three\nlines" * 500)],
    *[(name, value) for name in SWITCHES for value in ("yes", 1, None)],
    *[(name, value) for name in NAMES for value in (None, True, "other", ["auto"])],
    ("mix", (True, 0.0, 5)),
    ("mix", (1.0, 0.0, 5.0)),
    ("memory_budget", 1.5),
    ("classes", 10.0),
    ("classes", 10**30),
    ("context_size", 0),
    ("cuts", []),
    ("cuts", None),
    ("cuts", [1]),
    ("cuts", b"a"),
    ("cuts", 10**5000),
    ("synthesizer", torch.nn.Linear(3, 3)),
    ("state", {1: 2}),
    ("state", {"h": 1.5}),
    ("compile", {1: 2}),
    ("compile", 1),
    ("example_kwargs", {1: X}),
    ("training", {}),
    ("scaler", "s"),
    ("loss", 5),
]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_wrong_kinds_and_ranges(number: int) -> None:
    name, value = WRONG[number]
    if isinstance(value, str) and name in ("cuts", "memory_budget"):
        value = 2j  # a text is of the right kind
    assert f"{name}=" in message(lambda: dni_fx.transform(two_layers(), X, **{name: value}))


FIELDS = [
    *[("scale", v) for v in (True, math.nan, math.inf, -1, "max")],
    *[("clip", v) for v in (True, math.inf, 0, "1")],
    *[("warmup", v) for v in (True, 1.5, -1, "1")],
    *[("every", v) for v in (True, 0, 2.0)],
    *[("lr", v) for v in (True, math.nan, -1.0)],
    *[("discount", v) for v in (True, 2, math.nan)],
    *[("trace", v) for v in (False, -0.5)],
    *[("auxiliary", v) for v in (True, False, math.inf, -1)],
    ("horizon", True),
    ("centered", 1),
    ("optimizer", "adam"),
]


@pytest.mark.parametrize(("name", "value"), FIELDS)
def test_fields_of_training(name: str, value: Any) -> None:
    assert message(lambda: dni_fx.Training(**{name: value})).startswith(f"{name}={value!r}: ")


def test_other_functions_and_classes() -> None:
    net = transformed()
    calls: list[tuple[str, Callable[[], object]]] = [
        ("example_kwargs=5", lambda: dni_fx.check(net, X, example_kwargs=5)),  # type: ignore[arg-type]
        ("every=True", lambda: dni_fx.log_metrics(net, print, every=True)),
        ("folder=5", lambda: dni_fx.save(net, 5)),  # type: ignore[arg-type]
        ("force='no'", lambda: dni_fx.save(net, "nowhere", force="no")),  # type: ignore[arg-type]
        ("folder=None", lambda: dni_fx.load(None)),  # type: ignore[arg-type]
        ("model=5", lambda: dni_fx.load("nowhere", model=5)),  # type: ignore[arg-type]
        ("path=5", lambda: dni_fx.Plan.load(5)),  # type: ignore[arg-type]
        ("path=5", lambda: dni_fx.save_checkpoint(5, net)),  # type: ignore[arg-type]
        ("model_or_graph=5", lambda: dni_fx.diff(5, net)),  # type: ignore[arg-type]
        ("accumulate=True", lambda: dni_fx.SegmentOptimizer(net, torch.optim.Adam, accumulate=True)),
        ("training=5", lambda: dni_fx.SegmentOptimizer(net, torch.optim.Adam, training=5)),  # type: ignore[arg-type]
        ("grad_lr='x'", lambda: dni_fx.DNI(two_layers(), grad_lr="x")),  # type: ignore[arg-type]
        ("recursive=1", lambda: dni_fx.DNI(two_layers(), recursive=1)),  # type: ignore[arg-type]
        ("grad_optim=['adam']", lambda: dni_fx.DNI(two_layers(), grad_optim=["adam"])),  # type: ignore[arg-type]
        ("λ=True", lambda: dni_fx.DNI(two_layers(), λ=True)),
        ("hidden_size=0", lambda: dni_fx.DNI(two_layers(), hidden_size=0)),
    ]
    for text, call in calls:
        assert message(call).startswith(f"{text}: "), text


def test_right_values_pass() -> None:
    check_arguments({"cuts": 2, "mix": 0, "memory_budget": "2GiB", "scale": "rms", "auxiliary": 0, "unknown": object()})
    check_arguments({"steps": MOST})
    assert "too large" in message(lambda: check_arguments({"steps": MOST + 1}))
    assert all(kind.words for kind in KINDS.values())


def test_large_values_are_described_by_type_and_shape() -> None:
    for value in (np.zeros((400, 8)), torch.rand(400, 8), two_layers(), "x" * 9999, list(range(9999)), 10**5000):
        assert len(message(lambda value=value: check_arguments({"scaler": value}))) < 200
    assert "<numpy.ndarray of shape [400, 8]>" in message(lambda: check_arguments({"scaler": np.zeros((400, 8))}))
