"""The command `dni-fx`, run in this process."""

import sys

import pytest

from dni_fx.cli import main


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of `dni-fx` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["dni-fx", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)
