"""Shared by the benchmarks: command lines, reports, times of steps, and runs in several processes.

`measure` is the command line of a benchmark that measures and reports at once. `command_line` is that of a benchmark
with many training runs: a file keeps a line for each finished run, so that a stopped benchmark continues.
"""

import argparse
import dataclasses
import functools
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

Run = TypeVar("Run")  # a frozen dataclass
Result = dict[str, Any]
T = TypeVar("T")
WARM_UP = 10
CORES = os.cpu_count() or 1


def timed(function: Callable[[], T]) -> tuple[float, T]:
    """Seconds of one call, and its result."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def in_turn(steps: Sequence[Callable[[], object]], count: int) -> list[tuple[float, ...]]:
    """`count` times in seconds for each step. The steps take turns, so that a slow moment slows all alike."""
    for _ in range(WARM_UP):
        for step in steps:
            step()
    return list(zip(*[[timed(step)[0] for step in steps] for _ in range(count)], strict=True))


def spread(values: Iterable[float], digits: int = 2) -> str:
    """Median (10th to 90th percentile)."""
    deciles = statistics.quantiles(values, n=10)
    low, middle, high = deciles[0], deciles[4], deciles[8]
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def ratio(times: Sequence[float], base: Sequence[float]) -> str:
    """The spread of `times` as ratios to `base`, turn by turn."""
    return spread([t / b for t, b in zip(times, base, strict=True)])


def errors_by_setting(
    error: Callable[[Any], float], settings: Iterable[tuple[Any, ...]], arguments: argparse.Namespace
) -> dict[tuple[Any, ...], str]:
    """Test errors in percent, of each seed, by setting. `error` takes `(*setting, seed, steps)`; workers import it."""
    jobs = [(*setting, seed, arguments.steps) for setting in settings for seed in range(arguments.seeds)]
    found: dict[tuple[Any, ...], list[str]] = {}
    with multiprocessing.get_context("spawn").Pool(arguments.workers) as pool:
        for job, percent in pool.imap(functools.partial(_work, error), jobs):
            found.setdefault(job[:-2], []).append(f"{percent:.2f}")
            print(f"{job}: {percent:.2f} %", file=sys.stderr, flush=True)
    return {setting: ", ".join(errors) for setting, errors in found.items()}


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
    """Do the runs that are not in the file; each worker imports `train`."""
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


def write_report(path: Path, lines: Iterable[str]) -> None:
    """Print each line when it is there; write all to a Markdown file beside `path`, and the notes that lie there."""
    text = ""
    for line in lines:
        print(line, flush=True)
        text += line + "\n"
    notes = path.with_suffix(".notes.md")
    path.with_suffix(".md").write_text(text + (notes.read_text() if notes.is_file() else ""))


def measure(
    description: str | None, path: Path, report: Callable[[argparse.Namespace], Iterable[str]], **numbers: int
) -> None:
    """The command line of a benchmark whose `report` measures, with these numbers as options, and gives lines."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_numbers(parser, numbers)
    parser.add_argument("--output", type=Path, default=path, help="the report (default: %(default)s)")
    arguments = parser.parse_args()
    write_report(arguments.output, report(arguments))


def add_numbers(parser: argparse.ArgumentParser, numbers: dict[str, int]) -> None:
    for name, default in numbers.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help="(default: %(default)s)")


Command = Callable[[argparse.Namespace], None]


def command_line(description: str | None, path: Path, run: Command, report: Command, **numbers: int) -> None:
    """The command line with `run`, which takes these numbers as options, and `report`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=path, help="the file of runs")
    commands = parser.add_subparsers(required=True)
    runner = commands.add_parser("run")
    add_numbers(runner, {"workers": 2} | numbers)
    runner.set_defaults(function=run)
    commands.add_parser("report").set_defaults(function=report)
    arguments = parser.parse_args()
    arguments.function(arguments)
