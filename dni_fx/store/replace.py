"""Write a file or a folder whole or not at all: in a hidden folder beside its place, then by one rename."""

import ctypes
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from dni_fx.errors import DniFxError, first_line
from dni_fx.paths import as_path

if sys.platform != "win32":
    import fcntl

__all__ = ["beside", "check_parent", "errors_of_writing", "flush", "real_path", "replace_folder"]

_PREFIX = ".dni-fx-writing-"
_NEW, _OLD = "new", "old"  # folders in a hidden folder: for what is written, and for what it replaces

# linux/fs.h and fcntl.h
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


def real_path(path: str | Path) -> Path:
    """The absolute path behind `~` and symbolic links: a link stays, and its target is read or replaced.

    Raises:
        DniFxError: If the path is no path.
    """
    try:
        return Path(os.path.realpath(as_path(path)))
    except (OSError, RuntimeError, ValueError, TypeError) as error:  # no such user, a zero byte
        raise DniFxError(f"{path!r} is no path to a file or folder ({first_line(error)})") from None


@contextmanager
def errors_of_writing(path: Path, advice: str = "choose another place") -> Iterator[None]:
    """Turn the errors of a write that fails into a `DniFxError` of one line."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise DniFxError(f"cannot write {path} ({reason}): {advice}") from None


@contextmanager
def beside(destination: Path) -> Iterator[Path]:
    """A path for a new file or folder, in a hidden folder beside `destination`, which is removed at the end.

    The process holds a lock on the hidden folder. If the process is killed, the lock is free, and the next call for the
    same place removes the folder.
    """
    check_parent(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_behind(destination.parent)
    hidden, lock = _hidden_folder(destination.parent)
    try:
        (hidden / _NEW).mkdir()
        yield hidden / _NEW / destination.name
    finally:
        _remove(hidden)
        if lock is not None:
            os.close(lock)


def check_parent(path: Path) -> None:
    """Raise the OSError that a new file or folder at a path would raise."""
    parent = next(one for one in path.parents if one.exists())
    if not parent.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def flush(*paths: Path) -> None:
    """Wait until files and the entries of folders are on the disk: some file systems raise errors only then."""
    for path in paths:
        if sys.platform == "win32" and path.is_dir():
            continue  # Windows opens no folders
        descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace_folder(new: Path, destination: Path, *, force: bool) -> None:
    """Move the folder `new`, a path from `beside`, to `destination`. Of several processes, one takes a free name.

    Args:
        force: Replace a folder that is there.

    Raises:
        FileExistsError: If a folder that is not empty is there, and `force` is false.
        OSError: If the move fails; then the old folder is where it was, or the message says where it is.
    """
    try:
        os.rename(new, destination)  # takes the place of nothing, or of an empty folder
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        if not force:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        try:
            _exchange(new, destination)
        except OSError:  # not on this system, or file system
            _exchange_in_two_steps(new, destination)


def _exchange(new: Path, destination: Path) -> None:
    """Let two folders trade places, in one step."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if renameat2(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(destination), _RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _exchange_in_two_steps(new: Path, destination: Path) -> None:
    """Move the old folder away, and the new one to its place; if that fails, move the old one back."""
    old = new.parents[1] / _OLD / destination.name
    old.parent.mkdir()
    os.rename(destination, old)
    try:
        os.rename(new, destination)
    except OSError as error:
        with suppress(OSError):
            os.rename(old, destination)
        where = "" if destination.exists() else f"; the folder that was there is now {old}"
        raise OSError(error.errno, f"{error.strerror}{where}") from None


def _hidden_folder(parent: Path) -> tuple[Path, int | None]:
    """A new hidden folder, and the descriptor of its lock; None: the file system has no locks."""
    while True:
        hidden = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        try:
            return hidden, _lock(hidden)
        except (BlockingIOError, FileNotFoundError):
            continue  # another process took the folder for one left behind, before this process locked it
        except OSError:
            return hidden, None


def _lock(folder: Path) -> int:
    """Lock a folder until the returned descriptor is closed, or this process ends in any way.

    Raises:
        BlockingIOError: If another process holds the lock.
        OSError: If the folder is gone, or cannot be locked.
    """
    if sys.platform == "win32":
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.stat(folder)  # raises an error if another process removed the folder before this one locked it
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _remove_left_behind(parent: Path) -> None:
    """Remove the hidden folders of processes that were killed: nothing holds their locks."""
    for hidden in parent.glob(f"{_PREFIX}*"):
        try:
            lock = _lock(hidden)
        except OSError:
            continue
        try:
            if {path.name for path in hidden.iterdir()} <= {_NEW, _OLD}:
                _remove(hidden)
        finally:
            os.close(lock)


def _remove(hidden: Path) -> None:
    """Remove a hidden folder. An old folder in it, whose place is free, first goes back there."""
    for old in hidden.glob(f"{_OLD}/*"):
        place = hidden.parent / old.name
        if not os.path.lexists(place):
            try:
                os.rename(old, place)
            except OSError:
                return  # kept: it is the only copy
    shutil.rmtree(hidden, ignore_errors=True)
