"""The examples are what they claim to be: targets that are rewritten right, and scripts that train."""

import contextlib
import dataclasses
import functools
import importlib
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from killed import raced
from oracle import Scripted, gradients, tell_truth

import dni_fx
from dni_fx.model.loading import load_target

EXAMPLES = Path(__file__).parents[1] / "examples"
CUTS = {"mlp": 3, "cnn": 2, "resnet": "every:Block", "transformer": "every:Block", "unet": ["down1", "down2", "up2"]}


def _example(name: str) -> tuple[Any, tuple[Any, ...]]:
    torch.manual_seed(0)
    model, inputs = load_target(str(EXAMPLES / f"{name}.py"))
    assert inputs is not None
    small = [t[:6] for t in inputs.args]
    return model.double(), tuple(t.double() if t.is_floating_point() else t for t in small)


def _close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("cuts", ["searched", "chosen"])
@pytest.mark.parametrize("name", CUTS)
def test_oracle(name: str, cuts: str) -> None:
    """True gradients, both ways of unlocking, mix=1, and none against backward."""
    model, inputs = _example(name)
    places: Any = 2 if cuts == "searched" else CUTS[name]
    expected = gradients(model, lambda m: m(*inputs))
    for unlock in ("none", "backward"):
        net = dni_fx.transform(model, inputs, cuts=places, unlock=unlock, synthesizer=Scripted)
        tell_truth(net, lambda m: m(*inputs))
        _close(gradients(net, lambda m: m(*inputs)), expected)
    mixed = dni_fx.transform(model, inputs, cuts=places, unlock="none", mix=1.0)
    _close(gradients(mixed, lambda m: m(*inputs)), expected)


@pytest.mark.parametrize("name", CUTS)
def test_none_and_backward_agree_and_eval_is_the_original(name: str) -> None:
    model, inputs = _example(name)
    found = []
    for unlock in ("none", "backward"):
        net = dni_fx.transform(model, inputs, cuts=CUTS[name], unlock=unlock)
        torch.manual_seed(3)
        for parameter in net.dni.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        found.append(gradients(net, lambda m: m(*inputs)))
        assert torch.equal(net.eval()(*inputs), model.eval()(*inputs))
        model.train()
    _close(found[0], found[1])


def test_skips_of_the_unet_cross_several_cuts() -> None:
    model, inputs = _example("unet")
    plan = dni_fx.plan(model, inputs, cuts=CUTS["unet"])
    crossing = [[t.node for t in cut.tensors] for cut in plan.cuts]
    assert len(set(crossing[0]) & set(crossing[1])) == 1
    assert len(crossing[1]) > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", CUTS)
def test_script_prints_both(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--steps", "20"])
    monkeypatch.syspath_prepend(str(EXAMPLES))  # as for `python examples/NAME.py`
    common = importlib.import_module("common")
    digits = common.load_digits()
    few = dataclasses.replace(digits, test_x=digits.test_x[:500], test_y=digits.test_y[:500])
    monkeypatch.setattr(common, "load_digits", lambda: few)  # all test digits take minutes
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    shown = capsys.readouterr().out
    assert "backprop" in shown and "decoupled" in shown and "20 steps" in shown


@pytest.mark.slow
def test_the_demo_compares(tmp_path: Path) -> None:
    deep = EXAMPLES / "deep.py"
    command = ["compare", str(deep), "--data", f"{deep}:batches", "--metric", f"{deep}:error", "--cuts", "4"]
    done = subprocess.run(
        [sys.executable, "-m", "dni_fx", *command, "--steps", "10"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Cut into 4 segments") and "checkpointing" in done.stdout


@pytest.mark.slow
def test_two_processes_train_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a copy of the project without its data: the text is the README. The processes are as torchrun starts them."""
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    shutil.copy(EXAMPLES.parent / "README.md", tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", ["pipeline.py", "--net", "characters", "--steps", "4"])
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    given = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "DNI_FX_DATA": str(tmp_path)}
    for name, value in given.items():
        monkeypatch.setenv(name, value)

    def train(rank: int) -> None:
        signal.alarm(60)  # ends a process that waits
        os.environ["RANK"] = str(rank)
        with (tmp_path / str(rank)).open("w") as output, contextlib.redirect_stdout(output):
            runpy.run_path(str(tmp_path / "examples" / "pipeline.py"), run_name="__main__")

    assert raced([functools.partial(train, rank) for rank in range(2)]) == [0, 0]
    below, above = ((tmp_path / str(rank)).read_text().splitlines() for rank in range(2))
    assert above[0] == "README.md, 4 steps of batch 64"
    assert [line.split(":")[0] for line in above[1:5]] == [f"step {step}" for step in range(1, 5)]
    assert re.fullmatch(r"test [4-7]\.\d+ bits a character", above[5])  # hardly trained
    assert below[0].startswith("rank 0: {'updates': 16, ") and above[6].startswith("rank 1: {'updates': 16, ")
