"""The command line that the tasks share."""

import argparse
import contextlib
import math
import signal
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import curves
import models
import torch
from curricula import Scheduled, Task
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from training import CHECKPOINT, METHODS, OPTIMIZERS, Run, write_csv

from dni_fx import DniFxError

_err = Console(stderr=True)


def main(name: str, description: str, kind: type[Task], argv: Sequence[str] | None = None, **defaults: Any) -> int:
    """Train on a task as the command line says.

    Args:
        name: Of the task's file.
        kind: Its class.
        argv: Arguments; None: those of the process.
        defaults: Of options, where this task has its own.

    Returns:
        The exit code: 0, 1 where the loss is no number any more, 2 for a bad argument, 130 after Ctrl-C.
    """
    torch.set_num_threads(1)  # threads that wait for each other are far slower on a busy machine
    parser = _parser(name, description, issubclass(kind, Scheduled))
    parser.set_defaults(out=Path("runs", name), **defaults)
    options = parser.parse_args(argv)
    if not issubclass(kind, Scheduled):
        options.generalise, task = 0, kind()
    else:
        options.generalise = options.steps // 10 if options.generalise is None else options.generalise
        task = kind(
            maximum=options.sequence_max_length,
            size=options.input_size,
            increment=options.curriculum_increment,
            every=options.curriculum_freq,
        )
    try:
        return _train(name, task, options)
    except (DniFxError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    except FloatingPointError as error:
        _err.print(f"{name}: {error}; the last checkpoint is kept", highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:  # outside of training, where nothing can be lost
        return 130


def _train(name: str, task: Task, options: argparse.Namespace) -> int:
    if not options.resume and (options.out / CHECKPOINT).exists():
        raise DniFxError(f"{options.out / CHECKPOINT} exists: go on with --resume, or give another --out")
    run = Run(task, options)
    if options.resume:
        run.load()
    if run.done > options.steps:
        raise DniFxError(f"{options.out / CHECKPOINT} is of step {run.done}, beyond --steps {options.steps}")
    options.out.mkdir(parents=True, exist_ok=True)  # fails now, and not when there is something to write
    with _asked_to_stop() as stop, _bar() as bar:
        shown = bar.add_task(
            f"{name} {options.model} {options.method}", total=options.steps, completed=run.done, says=""
        )
        while run.done < options.steps and not stop:
            loss = run.step()
            level = ", ".join(f"{key} {value}" for key, value in task.level.items())
            bar.update(shown, completed=run.done, says=f"{loss:.4f} {task.unit}, {level}")
            if run.done % options.check_freq == 0:
                run.save()
        run.save()
    _picture(run, name)
    if stop:
        _err.print(f"stopped after step {run.done}; --resume goes on", highlight=False)
        return 130
    if options.generalise:
        _generalise(run)
    return 0


def _generalise(run: Run) -> None:
    rows = []
    with _bar() as bar:
        shown = bar.add_task("longer sequences", total=run.options.generalise, says="")
        for row in run.generalise():
            rows.append(row)
            bar.update(shown, advance=1, says=f"{row['loss']:.4f} {run.task.unit}, {row['steps']} steps")
    write_csv(run.options.out / "generalisation.csv", rows)
    loss, right = (statistics.mean(row[key] for row in rows) for key in ("loss", "right"))
    print(f"longer sequences: loss {loss:.4f} {run.task.unit}, {right:.1%} right")


def _picture(run: Run, name: str) -> None:
    title = f"{name}, {run.options.model}, {run.options.method}"
    try:
        curves.draw(run.options.out / "curves.png", title, run.task.unit, run.rows)
    except ImportError:
        _err.print('no curves.png: pip install "dni-fx[plots]"', highlight=False, markup=False)


def _bar() -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[says]}"), TimeRemainingColumn())
    return Progress(TextColumn("{task.description}"), *columns, console=_err)


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[list[int]]:
    """Ctrl-C lets the step that runs come to its end; what is given is not empty from then on. The second one ends."""
    asked: list[int] = []

    def ask(number: int, frame: object) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


class _Parser(argparse.ArgumentParser):
    """One that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def _parser(name: str, description: str, scheduled: bool) -> argparse.ArgumentParser:
    parser = _Parser(prog=name, description=description, formatter_class=_Help, allow_abbrev=False)
    add = parser.add_argument
    add("--model", choices=models.NAMES, default="lstm", help="memory: an LSTM with a small one; dnc: pytorch-dnc's")
    add("--method", choices=METHODS, default="dni", help="through all time, truncated, or truncated with a cut in time")
    add("--window", type=_count, default=4, help="steps of a window")
    add("--steps", "--iterations", type=_count, default=100_000, help="batches of sequences to train on")
    add("--batch-size", type=_count, default=100, help="sequences a batch")
    add("--lr", type=_positive, default=1e-4, help="learning rate")
    add("--optim", choices=OPTIMIZERS, default="adam", help="optimizer")
    add("--clip", type=_not_negative, default=50.0, help="largest norm of the model's gradient; 0: no limit")
    add("--synthesizer", default="auto", help="as in dni_fx.transform")
    add("--nhid", type=_count, default=64, help="hidden units")
    add("--nhlayer", type=_count, default=2, help="recurrent layers of a controller, or of lstm, gru, rnn")
    add("--nlayer", type=_count, default=1, help="layers of dnc")
    add("--rnn-type", choices=("lstm", "gru", "rnn"), default="lstm", help="the controller of dnc")
    add("--dropout", type=_share, default=0.0, help="between recurrent layers")
    add("--mem-size", type=_count, default=20, help="width of a slot of the memory")
    add("--mem-slot", type=_count, default=16, help="slots of the memory")
    add("--read-heads", type=_count, default=4, help="of dnc")
    if scheduled:
        add("--input-size", type=_two, default=6, help="features of a step: bits and the flag, or digits and the end")
        add("--sequence-max-length", type=_count, default=4, help="the longest sequence that is shown at first")
        add("--curriculum-increment", type=_whole, default=0, help="by how much it grows")
        add("--curriculum-freq", type=_count, default=1000, help="after how many steps each time")
        add("--generalise", type=_whole, help="batches of longer sequences at the end; None: a tenth of the steps")
    add("--seed", type=int, default=0, help="of all random numbers")
    add("--summarize-freq", type=_count, default=100, help="steps a point of the curves")
    add("--check-freq", type=_count, default=1000, help="steps between checkpoints")
    add("--out", type=Path, help="folder of checkpoint and curves")
    add("--resume", action="store_true", help="go on with the checkpoint there")
    return parser


def _number(kind: type[int] | type[float], least: float, most: float, what: str) -> Any:
    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value

    return read


_LARGEST = 1e300  # no infinity
_whole = _number(int, 0, _LARGEST, "a whole number, 0 or more")
_count = _number(int, 1, _LARGEST, "a whole number, 1 or more")
_two = _number(int, 2, _LARGEST, "a whole number, 2 or more")
_positive = _number(float, 1e-300, _LARGEST, "a positive number")
_not_negative = _number(float, 0, _LARGEST, "a number, 0 or more")
_share = _number(float, 0, 1 - 1e-9, "a number from 0 to below 1")
