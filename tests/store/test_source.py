"""Modules as source: the call that makes a layer again, and what has none."""

from typing import Any

import pytest
import torch
from torch import nn

import dni_fx
from dni_fx.store.construction import construction
from dni_fx.store.source import SourceWriter


@pytest.mark.parametrize(
    ("layer", "call"),
    [
        (nn.Linear(3, 4), "torch.nn.Linear(in_features=3, out_features=4)"),
        (nn.Linear(3, 4, bias=False), "torch.nn.Linear(in_features=3, out_features=4, bias=False)"),
        (nn.Dropout(0.2), "torch.nn.Dropout(p=0.2)"),
        (nn.GRU(3, 4, batch_first=True), "torch.nn.GRU(input_size=3, hidden_size=4, batch_first=True)"),
        (nn.Sequential(), None),
        (type("Own", (nn.Linear,), {})(3, 4), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_call_that_makes_a_layer(layer: Any, call: str | None) -> None:
    assert construction(layer) == call
    if call is not None:
        assert str(eval(call, {"torch": torch})) == str(layer)


def test_a_layer_that_was_changed_has_no_call() -> None:
    layer = nn.Linear(3, 4)
    layer.weight = nn.Parameter(torch.rand(4, 5))
    assert construction(layer) is None


def test_the_text_is_a_module_with_one_class() -> None:
    net = dni_fx.transform(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.rand(5, 3), cuts=["1"])
    writer = SourceWriter(net)
    text = writer.text()
    compile(text, "model.py", "exec")
    assert text.startswith(f'"""{writer.class_name} in 2 segments, written by dni-fx.')
    assert text.count("\nclass ") == 1 and "read_dni(__file__)" in text and writer.files == {}
    exported = dni_fx.transform(net.dni_captured.original, torch.rand(5, 3), cuts=["1"], frontend="modules")
    assert "needs_model(__file__)" in SourceWriter(exported).text()
