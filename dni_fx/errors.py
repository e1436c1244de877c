"""The one error family of the project; the command line turns each into a line and an exit code."""

import reprlib
from pathlib import Path

__all__ = [
    "OURS",
    "BackwardOrderError",
    "CaptureError",
    "ContextError",
    "DniFxError",
    "NoLegalCutError",
    "PeerError",
    "SourceError",
    "TargetError",
    "described",
    "first_line",
]


OURS = str(Path(__file__).parent)  # frames of a traceback in this folder are not the person's code


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


class _Short(reprlib.Repr):
    """Short texts of values: numbers, texts and small containers as they are, all else by type and shape."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxlong = 80

    def repr_int(self, x: int, level: int) -> str:
        return (
            super().repr_int(x, level) if abs(x) < 10**1000 else "<int of over 1000 digits>"
        )  # Python limits str(int)

    def repr_instance(self, x: object, level: int) -> str:
        cls, shape = type(x), getattr(x, "shape", None)
        if x is None or cls in (bool, float, complex):
            return repr(x)
        name = getattr(x, "__name__", None)
        if isinstance(name, str):  # a class or a function
            return f"<{cls.__name__} {name}>"
        where = "" if cls.__module__ == "builtins" else f"{cls.__module__.split('.')[0]}."
        of = f" of shape {list(shape)}" if isinstance(shape, tuple) and shape else ""
        return f"<{where}{cls.__name__}{of}>"


_SHORT = _Short()


def described(value: object) -> str:
    """A value as an error message shows the value: one short line, however large the value is."""
    return " ".join(_SHORT.repr(value).split())


class DniFxError(Exception):
    """An error that the person can correct; the message names the error, its place, and the remedy."""

    exit_code = 2


class TargetError(DniFxError):
    """The person's file or module raised an error while it was loaded."""

    exit_code = 3


class CaptureError(DniFxError):
    """The model cannot be captured, or its capture is not the same network."""

    exit_code = 3


class NoLegalCutError(DniFxError):
    """The model has no place for a legal cut."""

    exit_code = 1


class PeerError(DniFxError):
    """A process of a pipeline is gone, or does not answer; the message names the stage and the rank."""

    exit_code = 3


class SourceError(DniFxError):
    """Part of a model has no source form: the folder needs the model beside it, or cannot be written."""


class ContextError(DniFxError):
    """`dni_context` is missing while training, or does not fit the activations."""


class BackwardOrderError(DniFxError):
    """An unlocked segment's gradients were erased before the backward pass, or there are two for one forward pass."""
