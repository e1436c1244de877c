"""What is written to stderr beside errors: --quiet and --verbose; and no color where none is wanted."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import run

# Symbolic tracing cannot follow `if`; the front end export can, since shapes are fixed.
NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        for layer in self.layers:
            if len(x) > 2:
                x = layer(x).relu()
        return x

model = Net()
"""


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    return "net.py"


def test_how_much_is_written(net: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["rewrite", net, "--cuts", "2", "--json", "--input", "4x8", "--force", "--report", "page.html"]
    assert run(monkeypatch, *command) == 0
    usual = capsys.readouterr()
    assert "wrote net_dni" in usual.err and "front end refused" not in usual.err and " s  " not in usual.err
    assert run(monkeypatch, *command, "-q") == 0
    quiet = capsys.readouterr()
    assert (quiet.out, quiet.err) == (usual.out, "")
    assert run(monkeypatch, *command, "--verbose") == 0
    verbose = capsys.readouterr()
    assert verbose.out == usual.out
    assert " s  loading net.py\n" in verbose.err and "front end refused: fx: " in verbose.err
    assert run(monkeypatch, *command, "-qv") == 2
    assert capsys.readouterr().err == "error: --quiet and --verbose exclude each other: give one of them\n"


# Help, wrong usage, an error, progress and a result; without torch, whose import takes seconds.
COMMANDS = """
import sys
from rich.text import Text
from dni_fx.cli import main
from dni_fx.cli.progress import out, progress
for arguments in (["plan", "--help"], ["plan", "--nope"], ["plan", "net.py", "-qv"]):
    sys.argv = ["dni-fx", *arguments]
    try:
        main()
    except SystemExit:
        pass
with progress() as show:
    show("a stage")
out.print(Text("a result", "bold"))
"""


def in_terminal(folder: Path, **environment: str) -> str:
    """What the commands write, to stdout and stderr."""
    ours, theirs = pty.openpty()
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    process = subprocess.Popen(
        [sys.executable, "-c", COMMANDS], stdout=theirs, stderr=theirs, cwd=folder, env=kept | environment
    )
    os.close(theirs)
    text = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux: all is read
            part = b""
        if not part:
            break
        text += part
    os.close(ours)
    assert process.wait() == 0
    return text.decode()


def test_colors_are_written_where_they_are_wanted(tmp_path: Path) -> None:
    assert "\x1b[" in in_terminal(tmp_path, TERM="xterm")
    for environment in ({"NO_COLOR": "1", "TERM": "xterm"}, {"TERM": "dumb"}):
        plain = in_terminal(tmp_path, **environment)
        assert "\x1b" not in plain and all(part in plain for part in ("--nope", "error: --quiet", "a result"))
    for environment, colored in (({"TERM": "xterm"}, False), ({"TERM": "xterm", "FORCE_COLOR": "1"}, True)):
        done = subprocess.run(
            [sys.executable, "-c", COMMANDS], capture_output=True, text=True, cwd=tmp_path, env=environment
        )
        assert ("\x1b[" in done.stdout) == ("\x1b[" in done.stderr) == colored
