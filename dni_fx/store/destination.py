"""The folder that a net is saved to: whether it may be written or replaced."""

import os
import re
from pathlib import Path

from dni_fx.errors import DniFxError
from dni_fx.store.replace import check_parent, errors_of_writing, real_path

__all__ = ["ADVICE", "FILES", "check_destination", "exists_error"]

ADVICE = "choose another output folder"

FILES = ("model.py", "plan.json", "weights.safetensors", "graph.diff")

_SOURCES = re.compile(r"source\d*\.py")  # copies of the person's files


def check_destination(folder: str | Path, *, force: bool) -> None:
    """Check that `save` may write to a folder; call this before long work.

    Raises:
        DniFxError: If the folder exists and `force` is false, if it holds a file that dni-fx did not write, or if the
            place cannot be written.
    """
    folder = real_path(folder)
    with errors_of_writing(folder, ADVICE):
        try:
            folder.stat()
        except FileNotFoundError:
            check_parent(folder)
            return
        if not folder.is_dir():
            raise DniFxError(f"{folder} exists and is no folder: {ADVICE}")
        if os.path.samefile(folder, os.curdir) or os.path.ismount(folder):
            raise DniFxError(f"{folder} is the current folder, or a mount point, and cannot be replaced: {ADVICE}")
        foreign = _foreign_file(folder)
        if foreign is not None:
            raise DniFxError(f"{folder} holds a file that dni-fx did not write ({foreign}): {ADVICE}")
        if not force and any(folder.iterdir()):
            raise exists_error(folder)
        check_parent(folder)


def exists_error(folder: Path) -> DniFxError:
    """The error for a folder that may not be replaced."""
    return DniFxError(f"{folder} exists: {ADVICE}, or replace it (force=True, --force)")


def _foreign_file(folder: Path) -> str | None:
    """The name of a file in a folder that `save` did not write; None: all are from `save`."""
    for path in sorted(folder.iterdir()):
        if path.name == "__pycache__" and path.is_dir():
            if not all(one.suffix == ".pyc" for one in path.iterdir()):
                return path.name
        elif not path.is_file() or not (path.name in FILES or _SOURCES.fullmatch(path.name)):
            return path.name
    model = folder / "model.py"
    if any(folder.iterdir()) and not (model.is_file() and b"written by dni-fx" in model.read_bytes()[:1000]):
        return min(path.name for path in folder.iterdir())
    return None
