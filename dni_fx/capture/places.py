"""The line of the person's own code where something happens."""

import linecache
import re
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import FrameType

import torch
from torch import fx

from dni_fx.errors import OURS
from dni_fx.graph import has_record, record_of

__all__ = ["current_line", "failing_line", "line_of_node", "set_line"]

_KEY = "dni_fx_line"

_FRAME = re.compile(r'File "(.+)", line (\d+)')

_SKIPPED = (str(Path(torch.__file__).parent), OURS)

_ENTRY = str(Path(__file__).with_name("frontends.py"))  # whose callers are no code of the model


def failing_line(error: Exception) -> tuple[str, str]:
    """The place and text of the innermost line of the person's code in a traceback; empty if there is none."""
    frames = [(f.filename, f.lineno or 0) for f in traceback.extract_tb(error.__traceback__)]
    return _innermost(reversed(frames))


def current_line() -> tuple[str, str]:
    """The place and text of the innermost line of the person's code that runs now."""
    return _innermost(_callers(sys._getframe(1)))


def set_line(node: fx.Node) -> None:
    """Note at a node the line of the person's code that runs now."""
    node.meta[_KEY] = current_line()


def line_of_node(node: fx.Node) -> tuple[str, str]:
    """The place and text of the line that made a node: from its record, `set_line` or the stack of `torch.export`."""
    if has_record(node) and record_of(node).line[0]:
        return record_of(node).line
    if _KEY in node.meta:
        place, text = node.meta[_KEY]
        return place, text
    frames = [(file, int(line)) for file, line in _FRAME.findall(node.stack_trace or "")]
    return _innermost(reversed(frames))


def _callers(frame: FrameType | None) -> Iterable[tuple[str, int]]:
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back


def _innermost(frames: Iterable[tuple[str, int]]) -> tuple[str, str]:
    for file, line in frames:
        if file == _ENTRY:
            break
        if not file.startswith(_SKIPPED):
            return f"{Path(file).name}:{line}", linecache.getline(file, line).strip()
    return "", ""
