"""What benchmarks of many training runs share: a file with a line a run, so that they go on where they were stopped."""

import argparse
import dataclasses
import functools
import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

Run = TypeVar("Run")  # a frozen dataclass
Result = dict[str, Any]


def done(path: Path, kind: type[Run]) -> Iterator[tuple[Run, Result]]:
    """The runs in a file."""
    if path.is_file():
        for line in path.read_text().splitlines():
            record = json.loads(line)
            yield kind(**record["run"]), record


def by_seed(path: Path, kind: type[Any]) -> dict[Any, list[Result]]:
    """Results of all seeds, in their order, under the run with seed 0."""
    found: dict[Any, list[Result]] = {}
    for run, record in sorted(done(path, kind), key=lambda one: one[0].seed):
        found.setdefault(dataclasses.replace(run, seed=0), []).append(record)
    return found


def finish(
    path: Path, wanted: Sequence[Run], train: Callable[[Run], Result], workers: int, say: Callable[[Result], str]
) -> None:
    """Do those that are not in the file; `train` is a function of a module, which each worker imports."""
    finished = {run for run, _ in done(path, type(wanted[0]))}
    todo = [run for run in wanted if run not in finished]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for run, result in pool.imap_unordered(functools.partial(_work, train), todo):
            record = {"run": dataclasses.asdict(run), "torch": torch.__version__} | result  # type: ignore[call-overload]
            with path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(f"{run}: {say(result)}", flush=True)


def _work(train: Callable[[Run], Result], run: Run) -> tuple[Run, Result]:
    torch.set_num_threads(1)
    return run, train(run)


def write_report(path: Path, lines: Sequence[str]) -> None:
    """Beside the file of runs, with the notes that lie there."""
    notes = path.with_suffix(".notes.md")
    text = "\n".join(lines) + "\n" + (notes.read_text() if notes.is_file() else "")
    path.with_suffix(".md").write_text(text)
    print(text)


Command = Callable[[argparse.Namespace], None]


def command_line(description: str | None, path: Path, run: Command, report: Command, **numbers: int) -> None:
    """`run`, which takes these numbers for options, and `report`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=path, help="the file of runs")
    commands = parser.add_subparsers(required=True)
    runner = commands.add_parser("run", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for name, default in ({"workers": 2} | numbers).items():
        runner.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=" ")
    runner.set_defaults(function=run)
    commands.add_parser("report").set_defaults(function=report)
    arguments = parser.parse_args()
    arguments.function(arguments)
