"""The lists and the help that the command line prints, and its words for a path that does not exist."""

import re

import pytest
from command_line import run


@pytest.mark.parametrize("command", ["rewrite", "check", "bench"])
def test_paragraphs_of_help_are_filled(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line that ends early is the last of its paragraph."""
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 80)
    assert run(monkeypatch, command, "--help") == 0
    prose = capsys.readouterr().out.split("╭")[0]
    for paragraph in re.split(r"\n\s*\n", prose):
        lines = [line.strip() for line in paragraph.strip().splitlines()]
        for line, after in zip(lines, lines[1:], strict=False):
            assert len(line) + 1 + len(after.split()[0]) > 78, paragraph


def test_options_of_synthesizers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "synthesizers") == 0
    shown = capsys.readouterr().out
    assert "hidden_layers=1" in shown and "pull=1.0" in shown and "nonlinearity='relu'" in shown
    assert "loss=" not in shown


@pytest.mark.parametrize("command", ["check", "diff", "plan"])
def test_a_path_that_does_not_exist(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, command, "no/such") == 2
    assert re.fullmatch(r"error: no such (file or )?folder: no/such.*\n", capsys.readouterr().err)
