"""The parts of long work: each is announced as it begins, and the command line shows it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["announce", "announced_to"]

Listener = Callable[[str, float], None]

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def announce(part: str, done: float) -> None:
    """Say which part of a work begins.

    Args:
        part: What is done now, in words.
        done: The share of the work that is done, 0 to 1.
    """
    listener = _listener.get()
    if listener is not None:
        listener(part, done)


@contextmanager
def announced_to(listener: Listener) -> Iterator[None]:
    """Call `listener(part, done)` for each part that begins in this context."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
