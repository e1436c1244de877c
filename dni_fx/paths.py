"""Paths that the user gives: of any kind and length, with `~` for the home directory."""

import os
from pathlib import Path

from dni_fx.errors import DniFxError, described, first_line

__all__ = ["as_path", "is_file", "kind_of"]


def as_path(path: object, name: str = "path") -> Path:
    """The path that the argument `name` holds, with `~` replaced by the home directory.

    Raises:
        DniFxError: If the argument is no path, or there is no such home directory.
    """
    if not isinstance(path, str | os.PathLike):
        raise DniFxError(f"{name}={described(path)}: give a path, as a str or a pathlib.Path")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DniFxError(f"{name}={described(str(path))}: {first_line(error)}") from None


def kind_of(path: Path) -> str:
    """ "file", "folder", or "nothing" where there is neither."""
    try:
        return "file" if path.is_file() else "folder" if path.is_dir() else "nothing"
    except (OSError, ValueError):  # a text that is too long for a path, or a folder that may not be read
        return "nothing"


def is_file(path: Path) -> bool:
    """Whether there is such a file."""
    return kind_of(path) == "file"
