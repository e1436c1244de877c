"""Consoles, and a status line for long work."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

__all__ = ["ShowStage", "err", "out", "progress", "progress_bar", "say", "say_error"]

# Names, paths and messages may hold `[x]` and `:end:`, which are no markup and no emoji.
out = Console(soft_wrap=False, markup=False, emoji=False, highlight=False)
err = Console(stderr=True, soft_wrap=True, markup=False, emoji=False, highlight=False)

ShowStage = Callable[[str], None]  # shows the name of the stage that begins


@contextlib.contextmanager
def progress() -> Iterator[ShowStage]:
    """Show a status line on stderr, if stderr is a terminal."""
    if not err.is_terminal:
        yield lambda stage: None
        return
    with err.status("starting") as status:
        yield lambda stage: status.update(Text(stage))  # a str would be read as markup


def progress_bar() -> Progress:
    """A bar on stderr, if stderr is a terminal."""
    columns = TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn()
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)


def say_error(message: str) -> None:
    """Print one line on stderr: the message, whose other lines and control characters are escaped."""
    line = " ".join(message.split())
    printable = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    say(Text.assemble(("error:", "bold red"), " ", printable))


def say(text: str | Text) -> None:
    """Print on stderr, unless stderr is closed or full: the exit code is right all the same."""
    with contextlib.suppress(OSError, ValueError):
        err.print(text)
