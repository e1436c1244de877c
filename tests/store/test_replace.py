"""A file or folder is written whole or not at all, whatever happens to the process that writes."""

import errno
import functools
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from killed import KILLED, raced, run_until

from dni_fx.errors import DniFxError
from dni_fx.store import replace
from dni_fx.store.replace import beside, errors_of_writing, flush, real_path, replace_folder


def write(folder: Path, text: str, *, force: bool = False) -> None:
    with beside(folder) as new:
        new.mkdir()
        (new / "first").write_text(text)
        (new / "second").write_text(text)
        flush(*new.iterdir(), new)
        replace_folder(new, folder, force=force)


def text_of(folder: Path) -> str:
    """The text that all files of a folder have; empty: there is no folder."""
    if not folder.exists():
        return ""
    first, second = (folder / name for name in ("first", "second"))
    assert first.read_text() == second.read_text()
    return first.read_text()


def no_exchange(new: Path, destination: Path) -> None:
    raise OSError(errno.EINVAL, "not on this file system")


@pytest.mark.parametrize(("way", "before"), [("exchange", ""), ("exchange", "old"), ("two steps", "old")])
def test_a_process_that_is_killed_at_any_step(
    way: str, before: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is the old one or the new one; a later save leaves nothing else, and loses no old folder."""
    if way == "two steps":
        monkeypatch.setattr(replace, "_exchange", no_exchange)
    folder = tmp_path / "out"
    killed = 0
    for step in range(1, 100):
        if before:
            write(folder, before, force=True)
        elif folder.exists():
            shutil.rmtree(folder)
        status = run_until(step, lambda: write(folder, "new", force=True), tmp_path)
        if status == 0:
            break
        assert status == KILLED
        killed += 1
        found = text_of(folder)
        assert found in (before, "new") or (way == "two steps" and not found)
        write(tmp_path / "other", "other", force=True)
        assert text_of(folder) == found or (text_of(folder), found) == ("old", "")
        assert {path.name for path in tmp_path.iterdir()} <= {"out", "other"}
    assert text_of(folder) == "new" and killed > 15


def test_of_two_processes_one_takes_a_new_name(tmp_path: Path) -> None:
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        texts = ["a", "b", "c"]
        statuses = raced([functools.partial(write, folder, text) for text in texts])
        assert sorted(statuses) == [0, 1, 1]
        assert text_of(folder) == texts[statuses.index(0)]
    assert {path.name for path in tmp_path.iterdir()} == set("01234")


def test_processes_that_replace_one_folder_take_turns(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")

    def often(text: str) -> None:
        for _ in range(10):
            write(tmp_path / "out", text, force=True)
            assert text_of_any(tmp_path / "out") in set("ab")

    assert raced([functools.partial(often, text) for text in "ab"]) == [0, 0]
    assert text_of(tmp_path / "out") in set("ab") and os.listdir(tmp_path) == ["out"]


def text_of_any(folder: Path) -> str:
    """The folder may be replaced between two reads."""
    return (folder / "first").read_text()


def test_a_name_that_is_taken_is_kept_without_force(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    with pytest.raises(FileExistsError):
        write(tmp_path / "out", "new")
    assert text_of(tmp_path / "out") == "old" and os.listdir(tmp_path) == ["out"]
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", "new")
    assert text_of(tmp_path / "empty") == "new"


@pytest.mark.parametrize("back", [True, False])
def test_a_second_step_that_fails_gives_the_old_folder_back(
    back: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replace, "_exchange", no_exchange)
    folder = tmp_path / "out"
    write(folder, "old")
    rename, fails = os.rename, False

    def failing(source: Any, target: Any) -> None:
        nonlocal fails
        fails = fails or Path(source) == folder  # from the first of the two steps on
        if Path(target) == folder and fails and (Path(source).parent.name == "new" or not back):
            raise OSError(errno.EIO, "the disk is broken")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(DniFxError, match="the disk is broken") as caught, errors_of_writing(folder):
        write(folder, "new", force=True)
    monkeypatch.undo()
    if back:
        assert text_of(folder) == "old" and os.listdir(tmp_path) == ["out"]
    else:
        kept = Path(str(caught.value).partition("the folder that was there is now ")[2].partition(")")[0])
        assert text_of(kept) == "old"
        write(tmp_path / "other", "other")  # a later save brings the folder back
        assert text_of(folder) == "old" and sorted(os.listdir(tmp_path)) == ["other", "out"]


def test_hidden_folders_of_others_stay(tmp_path: Path) -> None:
    """A folder whose writer lives, and a folder of a person, with a name that begins like those of dni-fx."""
    own = tmp_path / ".dni-fx-writing-mine"
    own.mkdir()
    (own / "notes").write_text("a")
    with beside(tmp_path / "out") as new:
        write(tmp_path / "other", "other")
        new.write_text("whole")
    assert sorted(os.listdir(tmp_path)) == [own.name, "other"] and (own / "notes").read_text() == "a"


def test_a_new_folder_that_another_process_takes_for_a_dead_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the making of the folder and its lock, another process may remove the folder."""
    lock, calls = replace._lock, []

    def late(folder: Path) -> int:
        calls.append(folder)
        if len(calls) == 1:
            folder.rmdir()
        if len(calls) == 2:
            raise BlockingIOError
        return lock(folder)

    monkeypatch.setattr(replace, "_lock", late)
    write(tmp_path / "out", "new")
    assert text_of(tmp_path / "out") == "new" and len(calls) == 3


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder is taken for one left behind."""

    def no_lock(folder: Path) -> int:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(replace, "_lock", no_lock)
    with beside(tmp_path / "first"):
        write(tmp_path / "out", "new")
        assert len(os.listdir(tmp_path)) == 2
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_modes_follow_the_umask(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        write(tmp_path / "out", "new")
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~mask
    assert (tmp_path / "out/first").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("path", ["~no-such-user-here/x", "a\0b", 3])
def test_what_is_no_path(path: Any) -> None:
    with pytest.raises(DniFxError, match="path"):
        real_path(path)
