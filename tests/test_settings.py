"""Settings: what they keep, and what they refuse."""

from typing import Any

import pytest
import torch
from one_cut import transformed

import dni_fx
from dni_fx.errors import DniFxError
from dni_fx.settings import Training


def test_a_plan_keeps_the_settings() -> None:
    net = transformed("none", mix=(1.0, 0.5, 7), training=Training(scale="rms", clip=2.0, warmup=3, every=2))
    plan = dni_fx.Plan.from_json(net.dni.plan.to_json())
    assert plan.rewrite == net.dni.plan.rewrite
    assert plan.rewrite is not None and plan.rewrite.settings.training.scale == "rms"


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"scale": 0.0}, "scale=0.0"),
    ({"scale": "max"}, "scale='max'"),
    ({"clip": -1.0}, "clip=-1.0"),
    ({"warmup": -1}, "warmup=-1"),
    ({"warmup": 1.5}, "warmup=1.5"),
    ({"every": 0}, "every=0"),
    ({"lr": 0.0}, "lr=0.0"),
    ({"optimizer": "adam"}, "a function from parameters"),
]


@pytest.mark.parametrize(("options", "text"), WRONG)
def test_wrong_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(DniFxError) as caught:
        Training(**options)
    assert text in str(caught.value)


def test_what_needs_an_optimizer_says_so() -> None:
    for training in (Training(lr=2.0), Training(optimizer=torch.optim.Adam)):
        with pytest.raises(DniFxError, match="needs optimizer="):
            transformed(training=training)
    for mix in ((1.0, 0.0), (1.0, 0.0, 0), (2.0, 0.0, 3)):
        with pytest.raises(DniFxError, match="mix="):
            transformed("none", mix=mix)
    with pytest.raises(DniFxError, match="Training"):
        transformed(training="fast")
