"""Consoles, and a status line for long work."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

__all__ = ["Step", "err", "escape", "out", "progress"]

out = Console(soft_wrap=False)
err = Console(stderr=True)

Step = Callable[[str], None]  # shows what goes on now


@contextmanager
def progress() -> Iterator[Step]:
    """A status line on stderr; no line where that is no terminal."""
    if not err.is_terminal:
        yield lambda what: None
        return
    with err.status("starting") as status:
        yield status.update


def escape(text: str) -> str:
    """The text with its brackets safe from rich markup."""
    return text.replace("[", r"\[")
