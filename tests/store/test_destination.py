"""The folder to save to: what may be replaced, and one clear line for each place that cannot be written."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run
from nets import two_layers

import dni_fx
from dni_fx.errors import DniFxError
from dni_fx.store import check_destination

X = torch.rand(4, 8)


@pytest.fixture(scope="module")
def net() -> Any:
    return dni_fx.transform(two_layers(8), X, cuts=["1"], verify=False)


def test_a_link_stays_and_its_target_is_written(net: Any, tmp_path: Path) -> None:
    for name in ("dangling", "empty", "saved"):
        target, link = tmp_path / f"{name}_target", tmp_path / name
        if name != "dangling":
            target.mkdir()
        if name == "saved":
            dni_fx.save(net, target)
        link.symlink_to(target.name)
        before = target.stat().st_ino if name == "saved" else 0
        dni_fx.save(net, link, force=name == "saved")
        dni_fx.load(link)
        assert link.is_symlink() and not target.is_symlink() and target.stat().st_ino != before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    (tmp_path / "file").write_text("mine")
    (tmp_path / "to_file").symlink_to("file")
    (tmp_path / "loop").symlink_to("loop")
    for name, reason in (("to_file", "is no folder"), ("loop", "cannot write")):
        with pytest.raises(DniFxError, match=reason):
            dni_fx.save(net, tmp_path / name, force=True)
    assert (tmp_path / "file").read_text() == "mine" and (tmp_path / "to_file").is_symlink()


def test_the_home_folder_is_found(net: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    dni_fx.save(net, "~/out")
    with pytest.raises(DniFxError, match="exists: choose another"):
        check_destination("~/out", force=False)
    dni_fx.load("~/out")
    dni_fx.save_checkpoint("~/deep/run.pt", net)
    dni_fx.load_checkpoint("~/deep/run.pt", net)
    assert sorted(os.listdir(tmp_path)) == ["deep", "out"]


PLACES: list[tuple[str, str]] = [
    ("n" * 300, "File name too long"),
    ("file/out", "Not a directory"),
    ("file/a/b/out", "Not a directory"),
    ("file", "no folder|no file|Is a directory"),
    ("~no-such-user-here/out", "home directory"),
    ("a\0b", "is no path|null"),
]


@pytest.mark.parametrize(("place", "reason"), PLACES, ids=[place[:9] for place, _ in PLACES])
def test_places_that_cannot_be_written(net: Any, place: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    path = place if place.startswith("~") else str(tmp_path / place)
    functions: list[Any] = [
        lambda: dni_fx.save(net, path),
        lambda: check_destination(path, force=True),
        *([] if place == "file" else [lambda: dni_fx.save_checkpoint(path, net)]),
    ]
    for function in functions:
        with pytest.raises(DniFxError, match=reason) as caught:
            function()
        assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    for function in (lambda: dni_fx.load(path), lambda: dni_fx.load_checkpoint(path, net)):
        with pytest.raises(DniFxError) as caught:
            function()
        assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["file"]


def test_no_permission(net: Any, tmp_path: Path) -> None:
    """For root as well, which no mode stops: `/proc` and `/sys` take no folders."""
    with pytest.raises(DniFxError, match="cannot write /proc/out"):
        dni_fx.save(net, "/proc/out")
    with pytest.raises(DniFxError, match=r"cannot write /proc/run\.pt"):
        dni_fx.save_checkpoint("/proc/run.pt", net)
    if os.geteuid():
        tmp_path.chmod(0o500)
        with pytest.raises(DniFxError, match="Permission denied"):
            check_destination(tmp_path / "out", force=False)
        tmp_path.chmod(0o700)


def test_files_of_a_person_are_not_replaced(net: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even those with names that `save` uses."""
    for name in ("model.py", "plan.json", "graph.diff", "source.py", "sources.py", "__pycache__/notes"):
        folder = tmp_path / name.replace("/", "_")
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("mine")
        with pytest.raises(DniFxError, match="did not write"):
            dni_fx.save(net, folder, force=True)
        assert (folder / name).read_text() == "mine"
    dni_fx.save(net, tmp_path / "out")
    (tmp_path / "out/source3.py").mkdir()
    with pytest.raises(DniFxError, match=r"did not write \(source3\.py\)"):
        dni_fx.save(net, tmp_path / "out", force=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(DniFxError, match="is the current folder"):
        dni_fx.save(net, ".")
    assert os.listdir(".") == [] and sorted(os.listdir(tmp_path / "out"))[0] == "graph.diff"


def test_a_checkpoint_replaces_files_alone(net: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(DniFxError, match="exists and is no file"):
            dni_fx.save_checkpoint(tmp_path / name, net)
    (tmp_path / "link").symlink_to("run.pt")
    dni_fx.save_checkpoint(tmp_path / "link", net)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "run.pt").is_file()
    assert sorted(os.listdir(tmp_path)) == ["folder", "link", "pipe", "run.pt"]


def test_the_command_line_ends_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\nmodel = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for place, reason in (
        ("n" * 300, "File name too long"),
        ("net.py/out", "Not a directory"),
    ):
        assert run(monkeypatch, "rewrite", "net.py", "-o", place) == 2
        error = capsys.readouterr().err
        assert reason in error and "Traceback" not in error
    assert os.listdir(tmp_path) == ["net.py"]
    assert run(monkeypatch, "rewrite", "net.py", "--input", "5x6", "--cuts", "2", "-o", "~/out") == 0
    assert sorted(os.listdir(tmp_path / "home/out"))[0] == "graph.diff"
