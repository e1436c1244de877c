"""`dni-fx launch` on a file of a person's own."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.run
from command_line import run
from filelock import FileLock
from in_stages import made
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

import dni_fx
from dni_fx.cli.launch import _show
from dni_fx.pipeline import Run, Trained

NET = """
import torch
from torch import nn

def block():
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh())

def build_model():
    return nn.Sequential(block(), block(), block(), nn.Linear(8, 3))

def batches():
    while True:
        yield torch.randn(16, 8), torch.randint(0, 3, (16,))

def broken():
    yield torch.randn(16, 8), torch.randint(0, 3, (16,))
    raise ValueError("the disk is gone")
"""


@pytest.fixture
def net(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(NET)
    return str(tmp_path / "net.py")


def test_the_torchrun_command(net: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "launch", net, "--data", f"{net}:batches", "--stages", "3", "--dry-run") == 0
    line = capsys.readouterr().out
    variable, _, command = line.partition(" ")
    assert variable == "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"  # for those who add --max-restarts
    assert command.startswith(f"torchrun --standalone --nproc-per-node 3 -m dni_fx launch {net} --data ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stages", "1", "--data", "x:y"], "stages=1: 2 or more"),
        (["--data", "x"], "--data x"),
        (["--steps", "0", "--data", "x:y"], "steps=0: 1 or more"),
        (["--microbatches", "0", "--data", "x:y"], "microbatches=0: 1 or more"),
        (["--speeds", "1,2,3", "--data", "x:y"], "--speeds 1,2,3: 3 numbers for --stages 2"),
        (["--checkpoints", __file__, "--data", "x:y"], "it is a file; give a folder"),
    ],
)
def test_wrong_options(
    options: list[str], message: str, net: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "launch", net, *options) == 2
    assert message in capsys.readouterr().err


def test_a_folder_of_checkpoints_is_for_one_run(
    net: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "steps"
    folder.mkdir()
    with FileLock(folder / ".lock"):
        assert run(monkeypatch, "launch", net, "--data", f"{net}:batches", "--checkpoints", str(folder)) == 2
    assert "another run writes to it" in capsys.readouterr().err


def test_a_stage_that_is_killed_is_named(
    net: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_arguments: Any) -> None:
        raise ChildFailedError("launch", {1: ProcessFailure(1, 0, -signal.SIGKILL, "")})

    monkeypatch.setattr(torch.distributed.run, "run", fails)
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")  # the command sets it: undone after the test
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert run(monkeypatch, "launch", net, "--data", f"{net}:batches") == 3
    assert "the process of stage 1 was ended by SIGKILL" in capsys.readouterr().err


def test_a_run_whose_steps_are_all_done(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"updates": 8, "waited": 0.0, "bytes_up": 0, "bytes_down": 0}
    _show(Trained(made("linear"), ["1"], [], 4, 0.0, 2 * [metrics]), Run(2, 4))
    shown = capsys.readouterr().out
    assert "loss" not in shown and "cut after 1" in shown


def launched(net: str, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "dni_fx", "launch", net, "--steps", "4", "--microbatches", "2", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(net).parent)


@pytest.mark.slow
def test_a_run_that_fails_goes_on_from_its_checkpoint(net: str, tmp_path: Path) -> None:
    folders = ["--checkpoints", str(tmp_path / "steps"), "--every", "1"]
    failed = launched(net, "--data", f"{net}:broken", *folders)
    lines = [line for line in failed.stderr.splitlines() if not line.startswith("step ")]
    assert failed.returncode in (2, 3) and lines[0].startswith("error: ") and "the disk is gone" in lines[0]
    assert [path.name for path in (tmp_path / "steps").glob("step*")] == ["step-000001"]

    done = launched(net, "--data", f"{net}:batches", *folders, "-o", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "step 1:" not in done.stderr and "step 4: loss" in done.stderr
    assert "cut after" in done.stdout and "samples a second" in done.stdout and "time waited" in done.stdout
    trained = dict(dni_fx.load(tmp_path / "out").named_parameters())
    names: dict[str, Any] = {}
    exec(NET, names)
    torch.manual_seed(0)
    for name, initial in names["build_model"]().named_parameters():
        assert 0 < (trained[name] - initial).abs().max() < 0.02  # eight updates by Adam, of both stages
