"""Consoles, a status line for long work, and how much a command writes to stderr."""

import contextlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from typer import rich_utils

from dni_fx.progress import announced_to

__all__ = [
    "ShowStage",
    "err",
    "note",
    "out",
    "progress",
    "progress_bar",
    "say",
    "say_error",
    "shows_progress",
    "stages",
    "verbosity",
]

_WITHOUT_COLOR = bool(os.environ.get("NO_COLOR"))  # for rich alone, text would still be bold or dim
if _WITHOUT_COLOR:
    rich_utils.COLOR_SYSTEM = None  # of help and of wrong usage

# Names, paths and messages may hold `[x]` and `:end:`, which are no markup and no emoji.
out = Console(
    soft_wrap=False, markup=False, emoji=False, highlight=False, color_system=None if _WITHOUT_COLOR else "auto"
)
err = Console(
    stderr=True,
    soft_wrap=True,
    markup=False,
    emoji=False,
    highlight=False,
    color_system=None if _WITHOUT_COLOR else "auto",
)

ShowStage = Callable[[str], None]  # shows the name of the stage that begins


@dataclass
class _Verbosity:
    """What is written to stderr beside errors."""

    quiet: bool = False
    verbose: bool = False


_verbosity = _Verbosity()


class _Lines(logging.Handler):
    """A line on stderr for each message."""

    def emit(self, record: logging.LogRecord) -> None:
        say(Text(record.getMessage(), "dim"))


@contextlib.contextmanager
def verbosity(*, quiet: bool, verbose: bool) -> Iterator[None]:
    """What a command writes to stderr: with neither, progress, hints and warnings.

    Args:
        quiet: Errors alone.
        verbose: Also each stage with its seconds, each warning as often as it is raised, and messages such as why a
            front end was refused.
    """
    logger, lines = logging.getLogger("dni_fx"), _Lines()
    level, before = logger.level, (_verbosity.quiet, _verbosity.verbose)
    _verbosity.quiet, _verbosity.verbose = quiet, verbose
    with warnings.catch_warnings():
        if quiet:
            warnings.simplefilter("ignore")
        if verbose:
            warnings.simplefilter("always", UserWarning)
            logger.addHandler(lines)
            logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(lines)
            logger.setLevel(level)
            _verbosity.quiet, _verbosity.verbose = before


def shows_progress() -> bool:
    """Whether stderr is a terminal that can show progress, and the command is not to be quiet."""
    can_move = err.is_terminal and sys.stderr.isatty() and err.color_system is not None
    return can_move and not _verbosity.quiet


@contextlib.contextmanager
def stages() -> Iterator[ShowStage]:
    """A function that begins a stage; with --verbose, the seconds of each stage are a line on stderr."""
    current: list[tuple[str, float]] = []

    def begin(stage: str | None) -> None:
        now = time.perf_counter()
        if current and _verbosity.verbose:
            name, start = current.pop()
            say(Text(f"{now - start:7.2f} s  {name}", "dim"))
        current[:] = [] if stage is None else [(stage, now)]

    try:
        yield begin
    finally:
        begin(None)


@contextlib.contextmanager
def progress() -> Iterator[ShowStage]:
    """Show the stage on stderr, and how much of it is done where that is known, if stderr is a terminal."""
    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(20), TaskProgressColumn()
    bar = Progress(*columns, TimeElapsedColumn(), console=err, transient=True, disable=not shows_progress())
    with stages() as begin, bar:
        task, current, reached = bar.add_task("starting", total=None), "starting", 0.0

        def show(stage: str) -> None:
            nonlocal task, current, reached
            begin(stage)
            bar.remove_task(task)
            task, current, reached = bar.add_task(stage, total=None), stage, 0.0

        def show_part(part: str, done: float) -> None:
            nonlocal reached
            name, reached = f"{current}: {part}", max(done, reached)  # a second front end begins at a smaller share
            begin(name)
            bar.update(task, description=name, total=1, completed=reached)

        with announced_to(show_part):
            yield show


def progress_bar() -> Progress:
    """A bar on stderr, if stderr is a terminal."""
    columns = TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn()
    return Progress(*columns, console=err, transient=True, disable=not shows_progress())


def say_error(message: str) -> None:
    """Print one line on stderr: the message, whose other lines and control characters are escaped."""
    line = " ".join(message.split())
    printable = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    say(Text.assemble(("error:", "bold red"), " ", printable))


def say(text: str | Text) -> None:
    """Print on stderr, unless stderr is closed or full: the exit code is right all the same."""
    with contextlib.suppress(OSError, ValueError):
        err.print(text)


def note(text: str) -> None:
    """Print a hint, or that a file was written, on stderr, unless the command is to be quiet."""
    if not _verbosity.quiet:
        say(text)
