"""The sequence tasks: what they show, how they grow, and that runs of every kind train, stop and go on."""

import csv
import importlib
import importlib.util
import math
import os
import signal
from argparse import Namespace
from pathlib import Path
from typing import Any

import command
import curricula
import generators
import models
import pytest
import torch
from curricula import Adding, Argmax, Copy, DncCopy, RepeatCopy, Task
from memory_lstm import MemoryLSTM
from torch import Tensor
from torch.utils import _pytree as pytree
from training import CHECKPOINT, METHODS, Run

import dni_fx

pytestmark = pytest.mark.slow

TASKS = ("copy_task", "repeat_copy", "dnc_copy", "adding", "argmax")
needs_dnc = pytest.mark.skipif(importlib.util.find_spec("dnc") is None, reason="pytorch-dnc is not installed")
MODELS = [pytest.param(name, marks=needs_dnc if name == "dnc" else ()) for name in models.NAMES]
SMALL = "--nhid 8 --nhlayer 1 --mem-slot 4 --mem-size 3 --read-heads 2 --batch-size 5 --window 3 --summarize-freq 2"


def _main(task: str, arguments: str, out: Path) -> int:
    module: Any = importlib.import_module(task)
    code: int = module.main([*SMALL.split(), "--out", str(out), *arguments.split()])
    return code


def _run(task: Task, **options: Any) -> Run:
    values = vars(command._parser("task", "", True).parse_args(SMALL.split())) | {
        "out": Path("no"),
        "synthesizer": "mlp",
    }
    return Run(task, Namespace(**values | options))


def _parameters(run: Run) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in run.model.state_dict().items()}


def test_repeat_copy() -> None:
    batch = generators.repeat_copy(4, 3, 2, bits=5)
    x, y = batch.inputs, batch.targets
    assert x.shape == (4, 12, 7) and y.shape == (4, 12, 6)
    symbols = x[:, 1:4, :5]
    assert set(symbols.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(y[:, 5:11, :5], torch.cat([symbols, symbols], 1))
    marks = x.clone()
    marks[:, 1:4, :5] = 0
    assert marks.nonzero().tolist() == [[row, *where] for row in range(4) for where in ([0, 5], [4, 6])]
    assert torch.equal(x[:, 4, 6], torch.full((4,), 0.2))
    assert not y[:, :5].any() and y[:, :, 5].sum() == y[:, 11, 5].sum() == 4 and not y[:, 11, :5].any()
    assert batch.mask.tolist() == batch.answer.tolist() == [0.0] * 5 + [1.0] * 7


def test_copy_is_repeat_copy_once() -> None:
    torch.manual_seed(1)
    batch = Copy(length=3).batch(2)
    torch.manual_seed(1)
    same = generators.repeat_copy(2, 3, 1)
    assert batch.inputs.shape == (2, 9, 10) and torch.equal(batch.inputs, same.inputs)
    assert torch.equal(batch.targets, same.targets)


def test_dnc_copy() -> None:
    batch = generators.dnc_copy(4, 3, size=6)
    x, y = batch.inputs, batch.targets
    assert x.shape == y.shape == (4, 7, 6)
    assert torch.equal(y[:, 4:, :5], x[:, :3, :5]) and not y[:, :4].any() and not y[..., 5].any()
    assert x[..., 5].nonzero().tolist() == [[row, 3] for row in range(4)] and not x[:, 4:].any()
    assert batch.mask.tolist() == [1.0] * 7 and batch.answer.tolist() == [0.0] * 4 + [1.0] * 3


@pytest.mark.parametrize("kind", ["adding", "argmax"])
def test_digits(kind: str) -> None:
    batch = getattr(generators, kind)(200, 3, size=4)
    digits = batch.inputs.argmax(-1)
    assert batch.inputs.shape == (200, 4, 4) and bool((batch.inputs.sum(-1) == 1).all())
    assert digits[:, :3].unique().tolist() == [0, 1, 2] and digits[:, 3].unique().tolist() == [3]
    for (*row, _), target in zip(digits.tolist(), batch.targets.squeeze(-1).tolist(), strict=True):
        last = max(range(3), key=lambda i, row=row: (row[i], i))
        assert target == [0, 0, 0, sum(row) if kind == "adding" else last]
    assert batch.mask.tolist() == batch.answer.tolist() == [0.0, 0.0, 0.0, 1.0]


def test_windows_are_the_sequence() -> None:
    batch = generators.padded(generators.dnc_copy(2, 3), 3)
    assert batch.inputs.shape == (2, 9, 6) and batch.mask.tolist() == [1.0] * 7 + [0.0, 0.0]
    assert not batch.inputs[:, 7:].any() and not batch.targets[:, 7:].any() and not batch.answer[7:].any()
    parts = list(generators.windows(batch, 4))
    assert [part.mask.numel() for part in parts] == [4, 4, 1]
    assert torch.equal(torch.cat([part.inputs for part in parts], 1), batch.inputs)
    assert torch.equal(torch.cat([part.targets for part in parts], 1), batch.targets)


def test_copy_grows_when_it_is_learned() -> None:
    task = Copy()
    task.advance(1, 0.15)
    assert task.level == {"N": 1}
    task.advance(2, 0.149)
    assert task.level == {"N": 2} and task.batch(1).inputs.shape[1] == 7


def test_repeat_copy_grows_in_turn() -> None:
    task, seen = RepeatCopy(), []
    for step in range(5):
        task.advance(step, 0.0)
        seen.append((task.length, task.repeats))
    assert seen == [(2, 1), (2, 2), (3, 2), (3, 3), (4, 3)]
    other = RepeatCopy()
    other.load_state_dict(task.state_dict())
    assert other == task


def test_lengths_grow_on_schedule() -> None:
    task = DncCopy(maximum=3, size=6, increment=2, every=10)
    for step in range(1, 21):
        task.advance(step, 0.0)
    assert task.level == {"max length": 7}
    lengths = {(task.batch(1).mask.numel() - 1) // 2 for _ in range(200)}
    assert lengths == set(range(1, 8))
    longer = {(task.long_batch(1).mask.numel() - 1) // 2 for _ in range(50)}
    assert 7 < max(longer) <= 70 and min(longer) >= 2


def test_losses() -> None:
    guess = torch.zeros(2, 3, 9)
    assert Copy().losses(guess, guess) == pytest.approx(torch.ones(2, 3))  # bits
    assert DncCopy(4, 6).losses(guess, guess) == pytest.approx(torch.full((2, 3), math.log(2)))
    guess, wanted = torch.tensor([[[1.4], [2.0]]]), torch.tensor([[[1.0], [4.0]]])
    assert Adding(4, 6).losses(guess, wanted).tolist() == [[pytest.approx(0.16), 4.0]]
    assert Argmax(4, 6).right(guess, wanted).tolist() == [[1.0, 0.0]]
    bits = torch.tensor([[[5.0, -5.0, 5.0]]])
    assert DncCopy(4, 3).right(bits, torch.tensor([[[1.0, 1.0, 0.0]]])).tolist() == [[0.5]]  # the flag is left out


@pytest.mark.parametrize("method", [pytest.param(m, marks=() if m == "dni" else pytest.mark.slow) for m in METHODS])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_trains_on_every_task(name: str, method: str) -> None:
    tasks = [Copy(length=2), RepeatCopy(length=2, repeats=2), DncCopy(4, 6), Adding(4, 6), Argmax(4, 6)]
    for task in tasks:
        run = _run(task, model=name, method=method)
        before = _parameters(run)
        assert math.isfinite(run.step())
        moved = {key for key, value in _parameters(run).items() if not torch.equal(value, before[key])}
        assert "head.weight" in moved or name == "dnc", f"{type(task).__name__}: {moved}"
        assert len(moved) > len(before) / 2, f"{type(task).__name__}: {moved}"


@pytest.mark.parametrize("name", [name for name in models.NAMES if name != "dnc"])
def test_without_predictions_a_cut_in_time_is_truncation(name: str) -> None:
    found = []
    for method, synthesizer in (("truncated", "mlp"), ("dni", "zero"), ("dni", "mlp"), ("backprop", "mlp")):
        run = _run(Copy(length=3), model=name, method=method, synthesizer=synthesizer, lr=1e-2)
        losses = [run.step() for _ in range(3)]
        found.append((losses, torch.cat([value.flatten() for value in _parameters(run).values()])))
    (losses, truncated), (same, zero), (_, dni), (_, whole) = found
    assert same == losses and torch.equal(zero, truncated)
    assert not torch.equal(dni, truncated) and not torch.equal(whole, truncated)


def test_backprop_in_windows_is_backprop() -> None:
    """A model of fixed length goes through time in pieces, whose graphs hang together."""
    weights = []
    for window in (3, 12):
        run = _run(Copy(length=3), model="memory", method="backprop", window=window)
        run.step()
        weights.append(torch.cat([value.flatten() for value in _parameters(run).values()]))
    torch.testing.assert_close(weights[0], weights[1])


def test_memory_is_traced_and_right() -> None:
    model = MemoryLSTM(6, 4, hidden=8, slots=5, width=3, steps=3)
    example = torch.rand(7, 3, 6), model.start(7)
    net = dni_fx.transform(model, example, state=True, frontend="fx", synthesizer="mlp")
    assert dni_fx.check(net, example)
    y, state = net(torch.rand(2, 3, 6), model.start(2))
    assert y.shape == (2, 3, 4) and [tuple(part.shape) for part in state] == [(2, 8), (2, 8), (2, 15), (2, 3), (2, 5)]


def test_memory_is_all_that_is_remembered() -> None:
    """Every part of the state matters, and gets a gradient: else what a cut in time predicts for it is in vain."""
    model = MemoryLSTM(6, 4, hidden=8, slots=5, width=3, steps=3)
    state = tuple(torch.rand_like(part).requires_grad_() for part in model.start(2))
    y, after = model(torch.rand(2, 3, 6), state)
    y.sum().backward()
    assert all(part.grad is not None and part.grad.abs().sum() > 0 for part in state)
    assert all(part.requires_grad for part in after)


@needs_dnc
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_dnc_is_what_it_was(kind: str) -> None:
    from dnc import DNC
    from dnc_model import DncModel

    options: dict[str, Any] = {"rnn_type": kind, "num_layers": 2, "nr_cells": 4, "cell_size": 3, "read_heads": 2}
    model = DncModel(6, 6, 8, 3, **options)
    original = DNC(6, 8, **options)
    original.load_state_dict(model.dnc.state_dict())
    zeros = torch.zeros(2, 5, 8)
    controllers = [(zeros, zeros) if kind == "lstm" else zeros for _ in range(2)]
    x, state = torch.rand(5, 6, 6), model.start(5)
    hidden: Any = (controllers, None, None)
    for window in x.split(3, 1):
        y, state = model(window, state)
        expected, hidden = original(window, hidden, reset_experience=False)
        torch.testing.assert_close(y, expected)
    torch.testing.assert_close(state[-1], hidden[2])
    torch.testing.assert_close(state[-2], hidden[1]["usage_vector"])
    torch.testing.assert_close(pytree.tree_leaves(hidden[0])[0].transpose(0, 1).flatten(1), state[0])


@needs_dnc
@pytest.mark.slow
def test_dnc_is_cut_in_time() -> None:
    from dnc_model import DncModel

    model = DncModel(6, 4, 8, 3, nr_cells=4, cell_size=3, read_heads=2)
    example = torch.rand(7, 3, 6), model.start(7)
    net = dni_fx.transform(model, example, state=True, frontend="fx", synthesizer="mlp")
    assert dni_fx.check(net, example)
    assert net(torch.rand(2, 5, 6), model.start(2))[0].shape == (2, 5, 4)


@pytest.mark.parametrize(
    ("method", "model"),
    [
        *[(method, "lstm") for method in METHODS],
        ("dni", "memory"),
        pytest.param("dni", "dnc", marks=[needs_dnc, pytest.mark.slow]),
    ],
)
def test_a_run_goes_on_bit_for_bit(method: str, model: str, tmp_path: Path) -> None:
    words = (
        f"--method {method} --model {model} --check-freq 2 --curriculum-freq 2 --curriculum-increment 1 --generalise 0"
    )
    assert _main("dnc_copy", f"{words} --steps 7", tmp_path / "whole") == 0
    assert _main("dnc_copy", f"{words} --steps 3", tmp_path / "parts") == 0
    assert _main("dnc_copy", f"{words} --steps 7 --resume", tmp_path / "parts") == 0
    whole, parts = (torch.load(tmp_path / name / CHECKPOINT, weights_only=True) for name in ("whole", "parts"))
    for one, other in zip(pytree.tree_leaves(whole), pytree.tree_leaves(parts), strict=True):
        if isinstance(one, Tensor | float):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
        else:
            assert one == other
    files = [(tmp_path / name / "curves.csv").read_text() for name in ("whole", "parts")]
    assert files[0] == files[1]
    rows = list(csv.DictReader(files[0].splitlines()))
    assert [row["step"] for row in rows] == ["2", "4", "6"] and rows[2]["max length"] == "6"
    assert ("cosine" in rows[0]) == (method == "dni")


def test_what_a_run_leaves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert _main("argmax", "--steps 4 --generalise 3 --method truncated", tmp_path) == 0
    assert {file.name for file in tmp_path.iterdir()} == {CHECKPOINT, "curves.csv", "curves.png", "generalisation.csv"}
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "generalisation.csv").read_text().splitlines()) == 4
    out, err = capsys.readouterr()
    assert "longer sequences: loss" in out and "4/4" in err


def test_interrupted_it_ends_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Run.step

    def interrupted(run: Run) -> float:
        if run.done == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(run)

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patched:
        patched.setattr(Run, "step", interrupted)
        assert _main("repeat_copy", "--steps 6", tmp_path / "stopped") == 130
    assert signal.getsignal(signal.SIGINT) is handler
    assert len((tmp_path / "stopped" / "curves.csv").read_text().splitlines()) == 2
    assert _main("repeat_copy", "--steps 6 --resume", tmp_path / "stopped") == 0
    assert _main("repeat_copy", "--steps 6", tmp_path / "whole") == 0
    files = [(tmp_path / name / "curves.csv").read_text() for name in ("stopped", "whole")]
    assert files[0] == files[1]


def test_a_loss_that_is_no_number_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(curricula, "bit_errors", lambda outputs, targets: outputs.mean(-1) * math.nan)
    assert _main("copy_task", "--steps 2", tmp_path) == 1
    assert "the loss is nan in step 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--model transformer", "invalid choice: 'transformer'"),
        ("--method bptt", "invalid choice: 'bptt'"),
        ("--window 0", "--window: '0' is not a whole number, 1 or more"),
        ("--window 2.5", "--window: '2.5' is not"),
        ("--lr nan", "--lr: 'nan' is not a positive number"),
        ("--lr -1", "--lr: '-1' is not"),
        ("--clip -1", "--clip: '-1' is not"),
        ("--dropout 1", "--dropout: '1' is not"),
        ("--input-size 1", "--input-size: '1' is not"),
        ("--nonsense 3", "unrecognized arguments: --nonsense 3"),
        ("--resume", "cannot read"),
        ("--steps 1 --out /dev/null/no", "/dev/null/no"),
        ("--synthesizer nonsense", "nonsense"),
        ("--synthesizer lstm", "mlp can"),
    ],
)
def test_bad_arguments(arguments: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        _main("adding", arguments, tmp_path)
    err = capsys.readouterr().err
    assert end.value.code == 2
    assert says in err and err.startswith("adding: ") and err.count("\n") == 1


def test_bad_ways_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _main("copy_task", "--steps 2", tmp_path) == 0
    for arguments, says in (
        ("--steps 4", "--resume"),
        ("--steps 1 --resume", "is of step 2"),
        ("--steps 4 --resume --lr 0.1", "--lr 0.001, not 0.1"),
        ("--steps 4 --resume --model gru", "of another net"),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            _main("copy_task", arguments, tmp_path)
        err = capsys.readouterr().err
        assert end.value.code == 2 and says in err and err.count("\n") == 1


def test_dnc_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as end:
        _main("dnc_copy", "--model dnc", tmp_path)
    err = capsys.readouterr().err
    assert end.value.code == 2 and "dni-fx[dnc]" in err and err.count("\n") == 1


@pytest.mark.parametrize("task", TASKS)
def test_help(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        importlib.import_module(task).main(["--help"])
    assert end.value.code == 0
    assert "--window" in capsys.readouterr().out
