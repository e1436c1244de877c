"""Help texts: what rich makes of them is what was written."""

import pytest
from typer.testing import CliRunner

from dni_fx.cli.commands import app

COMMANDS = ["rewrite", "plan", "check", "bench", "inspect", "diff", "synthesizers"]


def shown(monkeypatch: pytest.MonkeyPatch, *command: str) -> str:
    monkeypatch.setenv("COLUMNS", "120")
    done = CliRunner().invoke(app, [*command, "--help"])
    assert done.exit_code == 0
    return done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_no_part_of_a_help_text_is_taken_for_an_emoji(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    strange = {character for character in shown(monkeypatch, command) if ord(character) > 0x2600}
    assert not strange


@pytest.mark.parametrize("command", ["rewrite", "plan", "check", "bench"])
def test_brackets_in_a_help_text_are_shown(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "[NAME=]SHAPE[:DTYPE[:LOW-HIGH]]" in shown(monkeypatch, command)


def test_every_command_is_in_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch)
    assert all(f" {command} " in text for command in COMMANDS)
