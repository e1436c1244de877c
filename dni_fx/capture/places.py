"""The line of the person's own code where something happens."""

import linecache
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import FrameType

import torch

from dni_fx.errors import OURS

__all__ = ["current_line", "failing_line"]

_SKIPPED = (str(Path(torch.__file__).parent), OURS)


def failing_line(error: Exception) -> tuple[str, str]:
    """The place and text of the innermost line of the person's code in a traceback; empty if there is none."""
    frames = [(f.filename, f.lineno or 0) for f in traceback.extract_tb(error.__traceback__)]
    return _innermost(reversed(frames))


def current_line() -> tuple[str, str]:
    """The place and text of the innermost line of the person's code that runs now."""
    return _innermost(_callers(sys._getframe(1)))


def _callers(frame: FrameType | None) -> Iterable[tuple[str, int]]:
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back


def _innermost(frames: Iterable[tuple[str, int]]) -> tuple[str, str]:
    for file, line in frames:
        if not file.startswith(_SKIPPED):
            return f"{Path(file).name}:{line}", linecache.getline(file, line).strip()
    return "", ""
