"""Consoles, and a status line for long work."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

__all__ = ["ShowStage", "err", "escape", "out", "progress"]

out = Console(soft_wrap=False)
err = Console(stderr=True)

ShowStage = Callable[[str], None]  # shows the name of the stage that begins


@contextmanager
def progress() -> Iterator[ShowStage]:
    """Show a status line on stderr, if stderr is a terminal."""
    if not err.is_terminal:
        yield lambda stage: None
        return
    with err.status("starting") as status:
        yield status.update


def escape(text: str) -> str:
    """Escape brackets, which rich would read as markup."""
    return text.replace("[", r"\[")
