"""What goes wrong around a command: one line on stderr, and the exit code."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import run

NET = """
import torch
from torch import nn
model = nn.Sequential(nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, 2))
example_inputs = torch.rand(3, 200)
"""
LONG = "x" * 300
MANY = "9" * 5000
CASES = [
    ["plan", f"{LONG}.py"],
    ["plan", LONG],
    ["plan", f"net.py:{LONG}"],
    ["plan", "net.py", "--cuts", f"{LONG}.json"],
    ["plan", "net.py", "--cuts", LONG],
    ["plan", "net.py", "--cuts", MANY],
    ["rewrite", "net.py", "-o", LONG],
    ["rewrite", "net.py", "-o", f"a/{LONG}"],
    ["rewrite", "net.py", "-o", "net.py/x"],
    ["rewrite", "net.py", "-o", "~nobody-99/x"],
    ["check", LONG],
    ["diff", LONG],
    ["bench", "net.py", "--plot", f"{LONG}.png"],
    ["plan", "net.py", "--input", "99999999999x99999999"],
    ["plan", "net.py", "--input", f"{MANY}x4"],
    ["plan", "net.py", "--input", f"3x4:int64:0-{MANY}"],
    ["plan", "net.py", "--classes", "9" * 30],
    ["rewrite", "net.py", "--cuts", "2", "--synthesizer", "mlp(hidden_size=999999999999)"],
    ["plan", "net.py", "--synthesizer", "mlp(a=" + "-" * 9000 + "1)"],
    ["plan", "net.py", "--memory-budget", MANY],
    ["rewrite", "net.py", "--mix", f"1:0:{MANY}", "--unlock", "none"],
    ["plan", "net.py", "--state", f"x={MANY}"],
    ["bench", "net.py", "--segments", MANY],
    ["bench", "net.py", "--steps", "9" * 30],
    ["plan", "folder.py"],
    ["plan", "binary.py"],
    ["plan", "weights.pt"],
    ["plan", "weights.pt:model"],
    ["plan", "folder"],
    ["plan", "net.py", "--cuts", "binary.json"],
    ["plan", "net.py", "--cuts", "folder.json"],
    ["plan", "net.py", "--cuts", "five.json"],
    ["check", "weights.pt"],
    ["diff", "weights.pt"],
    ["plan", "an_array.py"],
    ["plan", "a_text.py"],
    ["plan", "bad_keys.py"],
    ["plan", "no_inputs.py"],
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    for name in ("binary.py", "binary.json", "weights.pt"):
        Path(name).write_bytes(bytes(range(256)) * 4)
    for name in ("folder", "folder.py", "folder.json"):
        Path(name).mkdir()
    Path("five.json").write_text('{"schema": 1, "model": 5}')
    Path("an_array.py").write_text(f"{NET}\nimport numpy as np\nexample_inputs = np.zeros((300, 200))\n")
    Path("a_text.py").write_text(f"{NET}\nexample_inputs = 'x' * 9999\n")
    Path("bad_keys.py").write_text(f"{NET}\nexample_inputs = None\nexample_kwargs = {{1: torch.rand(3, 200)}}\n")
    Path("no_inputs.py").write_text(f"{NET}\nexample_inputs = []\n")
    return tmp_path


def error_line(err: str) -> str:
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("number", range(len(CASES)))
def test_one_line_and_exit_code_2(
    number: int, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.rglob("*"))
    assert run(monkeypatch, *CASES[number]) == 2
    captured = capsys.readouterr()
    assert len(error_line(captured.err)) < 700 and not captured.out
    assert [p for p in sorted(folder.rglob("*")) if "__pycache__" not in str(p) and p.name != "a"] == before


def test_names_are_printed_as_they_are(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are no markup and no emoji, and their control characters do nothing."""
    for name in ("[name=]", "[/bold]", "a:end:b", ":smile:", "[red]x[/red]"):
        assert run(monkeypatch, "plan", "net.py", "--cuts", name) == 2
        assert f"called {name!r}" in error_line(capsys.readouterr().err)
    assert run(monkeypatch, "plan", "net.py", "--cuts", "\x1b[31m") == 2
    assert "\x1b" not in error_line(capsys.readouterr().err)
    assert run(monkeypatch, "rewrite", "net.py", "-o", "[b]:end:") == 0
    assert "wrote [b]:end:: model.py" in capsys.readouterr().out


def test_names_in_tables_are_printed_as_they_are(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("odd.py").write_text(f"{NET}\nmodel.__class__ = type('[b]:end:', (nn.Sequential,), {{}})\n")
    assert run(monkeypatch, "plan", "odd.py") == 0
    assert "[b]:end:  front end" in capsys.readouterr().out


def test_an_error_of_the_system_is_no_bug(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error, text in (
        (OSError(28, "No space left on device", "a/b"), "error: a/b: No space left on device"),
        (OSError(28, "No space left on device"), "error: cannot write: No space left on device"),
        (MemoryError(), "error: not enough memory: MemoryError; give smaller sizes"),
        (RuntimeError("[x] DefaultCPUAllocator: can't allocate memory"), "can't allocate memory; give smaller sizes"),
    ):

        def fails(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("dni_fx.planning.make_plan", fails)
        assert run(monkeypatch, "plan", "net.py") == 2
        assert text in error_line(capsys.readouterr().err)


def command(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "dni_fx", *arguments], stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disks(folder: Path) -> None:
    with open("/dev/full", "w") as full:
        done = command("--help", stdout=full)
        assert (done.returncode, error_line(done.stderr)) == (2, "error: cannot write: No space left on device")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    done = command("rewrite", "net.py", "--cuts", "2", "-o", "out", preexec_fn=limit)
    assert done.returncode == 2 and "File too large" in error_line(done.stderr)
    assert not Path("out").exists() and not list(Path().glob(".out*"))


def test_interrupt(folder: Path) -> None:
    Path("slow.py").write_text("import time\nprint('loading', flush=True)\ntime.sleep(60)\n")
    command = [sys.executable, "-m", "dni_fx", "plan", "slow.py"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None and process.stderr.readline() == "loading\n"
        time.sleep(0.1)
        os.kill(process.pid, signal.SIGINT)
        assert process.stderr.read() == "interrupted\n"
    assert process.returncode == 130


def test_the_module_is_the_command(folder: Path) -> None:
    done = command("--version", stdout=subprocess.PIPE)
    assert done.returncode == 0 and done.stdout.startswith("dni-fx ")
