"""Messages under the command line name options that the command line has."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import run
from typer.testing import CliRunner

import dni_fx
from dni_fx.cli.commands import app
from dni_fx.cli.messages import in_options

ROOT = Path(__file__).parents[2]
ARGUMENTS = {*inspect.signature(dni_fx.transform).parameters, "kwargs", "force"}
# No command has these, so no command raises an error about them. `load(folder, model=model)` is code.
NOT_REACHED = {"step", "optimizer", "model", "accumulate", "context_from"}


def options() -> set[str]:
    found: set[str] = set()
    for command in ("rewrite", "plan", "check", "bench", "compare", "inspect", "diff", "launch"):
        text = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).stdout
        found |= set(re.findall(r"(--[a-z-]+)", text))
    return found


def texts(path: Path) -> Iterator[str]:
    """The messages of the errors that a file raises, without the values in them."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            for argument in node.exc.args:
                parts = argument.values if isinstance(argument, ast.JoinedStr) else [argument]
                yield "".join(str(p.value) if isinstance(p, ast.Constant) else "X" for p in parts)


def named(message: str) -> set[str]:
    """The options that a message names, and the arguments that are left."""
    return {*re.findall(r"(--[a-z][a-z-]+)", message), *re.findall(r"(?<![\w.-])([a-z_]+)=(?!=)", message)}


def test_every_message_in_the_code() -> None:
    known, found = options(), 0
    for path in sorted({*(ROOT / "dni_fx").rglob("*.py"), *(ROOT / "passes").glob("*.py")}):
        for text in texts(path):
            found += 1
            wrong = {n for n in named(in_options(text)) if n not in known and (n in ARGUMENTS or n.startswith("--"))}
            assert not wrong - NOT_REACHED, f"{path.name}: {text}"
    assert found > 100


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("loss needs classes= (or context_size=): it", "loss needs --classes (or --context-size): it"),
        ("unlock='x': there are none", "--unlock='x': there are none"),
        ("classes=1: 2 or more, or None", "--classes=1: 2 or more"),
        ("mix is for cuts in depth: give cuts=", "mix is for cuts in depth: give --cuts"),
        ("replace it (force=True, --force)", "replace it (--force)"),
        ("state=True is for", "--state=auto is for"),
        ('as in state={"hidden": 1}', "as in --state=hidden=1"),
        ("a synthesizer with step=1, my_loss=2, x.loss=3", "a synthesizer with step=1, my_loss=2, x.loss=3"),
    ],
)
def test_arguments_become_options(message: str, shown: str) -> None:
    assert in_options(message) == shown


NET = """
import torch
from torch import nn
model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
example_inputs = torch.rand(3, 4)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--loss", "mse_loss", "--synthesizer", "guided_head"],
        ["--loss", "mse_loss", "--classes", "3"],
        ["--loss", "relu", "--classes", "3"],
        ["--loss", "__class__", "--classes", "3"],
        ["--synthesizer", "guided_head"],
        ["--synthesizer", "critic"],
        ["--classes", "3", "--state", "auto"],
        ["--state", "x"],
        ["--memory-budget", "x"],
        ["--cuts", "2", "--objective", "x"],
        ["--frontend", "x"],
    ],
)
def test_wrong_options(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    assert run(monkeypatch, "plan", "net.py", *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    wrong = {name for name in named(line) if name.startswith("--") or name in ARGUMENTS} - options()
    assert not wrong, line
