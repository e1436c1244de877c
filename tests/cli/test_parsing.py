"""Texts of the command line."""

from typing import Any

import pytest

from dni_fx.cli.parsing import parse_mix, parse_training
from dni_fx.errors import DniFxError
from dni_fx.settings import Training

MIXES = [("0.5", 0.5), ("1:0:100", (1.0, 0.0, 100))]


@pytest.mark.parametrize(("text", "mix"), MIXES)
def test_mix_on_the_command_line(text: str, mix: Any) -> None:
    assert parse_mix(text) == mix
    for wrong in ("a", "1:0", "1:0:b"):
        with pytest.raises(DniFxError):
            parse_mix(wrong)


def test_training_on_the_command_line() -> None:
    texts = ["warmup=100", "scale=rms", "clip=1e-2", "centered=false", "lr=none"]
    assert parse_training(texts) == Training(scale="rms", clip=0.01, warmup=100, centered=False)
    assert parse_training(None) == Training()


WRONG = [
    ("wamup=3", "did you mean warmup"),
    ("warmup", "KEY=VALUE"),
    ("optimizer=Adam", "KEY=VALUE, with scale, clip"),
    ("warmup=many", "--training warmup='many': a number of steps, 0 or more"),
    ("warmup=1.5", "--training warmup=1.5: a number of steps"),
    ("trace=0.5", "--training trace is for a horizon"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_one_line_for_wrong_training(text: str, message: str) -> None:
    with pytest.raises(DniFxError) as caught:
        parse_training([text])
    assert message in str(caught.value)
