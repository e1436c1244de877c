"""The one error family of the project; the command line turns each into a line and an exit code."""

from pathlib import Path

__all__ = [
    "OURS",
    "BackwardOrderError",
    "CaptureError",
    "ContextError",
    "DniFxError",
    "NoLegalCutError",
    "SourceError",
    "TargetError",
    "first_line",
]


OURS = str(Path(__file__).parent)  # a frame of a traceback in this folder is no line of the person's


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


class DniFxError(Exception):
    """Something the person can put right; the message says what, where, and what to do."""

    exit_code = 2


class TargetError(DniFxError):
    """The person's file or module raised while it was loaded."""

    exit_code = 3


class CaptureError(DniFxError):
    """The model could not be traced, or its trace is not the same network."""

    exit_code = 3


class NoLegalCutError(DniFxError):
    """The model has no place where it can be cut."""

    exit_code = 1


class SourceError(DniFxError):
    """Part of a model has no source form: the folder needs the model beside it, or cannot be written."""


class ContextError(DniFxError):
    """`dni_context` is missing while training, or does not fit the activations."""


class BackwardOrderError(DniFxError):
    """An unlocked segment's gradients were erased before the backward pass, or there are two for one forward pass."""
