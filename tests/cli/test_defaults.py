"""Defaults of options in pyproject.toml."""

import json
from pathlib import Path

import pytest
from command_line import run

NET = """
import torch
from torch import nn
model = nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(8, 8), nn.Tanh())])
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path / "inner")
    return tmp_path / "pyproject.toml"


def test_defaults_for_all_commands_and_for_one(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project.write_text(
        '[tool.dni-fx]\ncuts = 3\ninput = ["4x8"]\nsynthesizer-share = 9\nno_verify = true\nsteps = 7\n'
        "[tool.dni-fx.plan]\njson = true\ncuts = 4\n"
    )
    assert run(monkeypatch, "plan", "net.py") == 0
    plan = json.loads(capsys.readouterr().out)
    assert len(plan["segments"]) == 4 and plan["inputs"] == ["0: 4x8 float32"]
    assert run(monkeypatch, "plan", "net.py", "--cuts", "2", "--input", "2x8") == 0  # the command line wins
    plan = json.loads(capsys.readouterr().out)
    assert len(plan["segments"]) == 2 and plan["inputs"] == ["0: 2x8 float32"]
    assert run(monkeypatch, "rewrite", "net.py", "--no-diff", "-o", "out") == 0
    assert "3 segments" in capsys.readouterr().out


def test_one_of_two_options_that_exclude_each_other(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project.write_text("[tool.dni-fx]\nquiet = true\n")
    assert run(monkeypatch, "plan", "nope.py", "-v") == 2
    assert "starting" in capsys.readouterr().err
    assert run(monkeypatch, "plan", "nope.py", "-q", "-v") == 2
    assert "exclude each other" in capsys.readouterr().err


def test_defaults_that_have_no_use_in_a_call(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project.write_text('[tool.dni-fx]\ninput = ["4x8"]\nall = true\ncuts = 2\n')
    assert run(monkeypatch, "rewrite", "net.py", "--no-verify", "-o", "out") == 0
    assert run(monkeypatch, "diff", "out", "--context", "1") == 0
    assert "... " in capsys.readouterr().out
    assert run(monkeypatch, "diff", "out", "--input", "4x8") == 2
    assert "--input is for a model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tool.dni-fx]\nclases = 10", "[tool.dni-fx]: there is no option 'clases'; did you mean classes?"),
        ("[tool.dni-fx.bench]\nunlock = 'none'", "[tool.dni-fx.bench]: there is no option 'unlock'; there are "),
        ("[tool.dni-fx.bensh]\nsteps = 20", "[tool.dni-fx]: there is no command 'bensh'; there are rewrite, plan"),
        ("[tool.dni-fx]\nclasses = 'ten'", "[tool.dni-fx]: classes is 'ten', not a whole number"),
        ("[tool.dni-fx]\nclasses = true", "classes is True, not a whole number"),
        ("[tool.dni-fx]\nno-verify = 1", "no-verify is 1, not true or false"),
        ("[tool.dni-fx]\nsynthesizer_share = '5 %'", "synthesizer_share is '5 %', not a number"),
        ("[tool.dni-fx]\ninput = [['4x8']]", "input is ['4x8'], not a text or a number or a list of them"),
        ("[tool.dni-fx]\nhelp = true", "there is no option 'help'"),
        ("[tool.dni-fx.plan]\nno-verify = true\nno_verify = true", "no-verify is there twice"),
        ("[tool]\ndni-fx = 3", "dni-fx is 3, not a table: write [tool.dni-fx]"),
        ("[tool.dni-fx\n", "cannot read"),
    ],
)
def test_one_line_for_what_does_not_fit(
    text: str, message: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project.write_text(text)
    assert run(monkeypatch, "plan", "net.py") == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
    assert str(project) in captured.err and message in captured.err
    assert run(monkeypatch, "plan", "net.py", "--help") == 0  # which does not need the file
