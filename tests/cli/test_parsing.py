"""Texts of the command line."""

from typing import Any

import pytest

from dni_fx.cli.parsing import parse_mix
from dni_fx.errors import DniFxError

MIXES = [("0.5", 0.5), ("1:0:100", (1.0, 0.0, 100))]


@pytest.mark.parametrize(("text", "mix"), MIXES)
def test_mix_on_the_command_line(text: str, mix: Any) -> None:
    assert parse_mix(text) == mix
    for wrong in ("a", "1:0", "1:0:b"):
        with pytest.raises(DniFxError):
            parse_mix(wrong)
