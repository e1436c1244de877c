"""Arguments of `transform` that are refused."""

from typing import Any

import pytest
import torch
from nets import two_layers

import dni_fx
from dni_fx.errors import DniFxError

X = torch.rand(4, 6)

SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"classes": 1}, "2 or more"),
    ({"classes": 0}, "2 or more"),
    ({"context_size": 0}, "1 or more"),
    ({"classes": 3, "context_size": 3}, "exclude each other"),
    ({"mix": 0.5}, "needs unlock='none'"),
    ({"mix": 1.5, "unlock": "none"}, "between 0 and 1"),
    ({"mix": float("nan"), "unlock": "none"}, "between 0 and 1"),
    ({"unlock": "forwards"}, "unlock='forwards'"),
    ({"synthesizer": "convv"}, "no synthesizer named 'convv'; there are auto, "),
    ({"synthesizer": "conv"}, "a conv synthesizer needs a map (N, C, ...)"),
    ({"synthesizer": lambda a, c: None}, "is a NoneType, not an nn.Module"),
]


@pytest.mark.parametrize(("settings", "text"), SETTINGS)
def test_bad_settings(settings: dict[str, Any], text: str) -> None:
    model = two_layers()
    with pytest.raises(DniFxError) as caught:
        dni_fx.transform(model, X, cuts=2, **settings)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not hasattr(model, "dni")
