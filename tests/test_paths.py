"""Paths of any kind and length."""

from pathlib import Path

import pytest
from nets import two_layers

import dni_fx
from dni_fx.errors import DniFxError
from dni_fx.paths import as_path, is_file, kind_of


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert as_path("~/a") == tmp_path / "a" and as_path(Path("~/a")) == tmp_path / "a"
    net = dni_fx.transform(two_layers(), cuts=2)
    dni_fx.save(net, "~/out")
    assert (tmp_path / "out" / "model.py").is_file()
    assert dni_fx.load("~/out").dni.plan == net.dni.plan == dni_fx.Plan.load("~/out")
    dni_fx.save_checkpoint("~/run.pt", net)
    assert dni_fx.load_checkpoint("~/run.pt", net) == {}


def test_what_is_no_path() -> None:
    for value, text in ((5, "folder=5: give a path"), ("~nobody-99/x", "home directory")):
        with pytest.raises(DniFxError, match=text):
            as_path(value, "folder")


def test_the_kind_of_a_path(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    assert [kind_of(p) for p in (tmp_path, tmp_path / "f", tmp_path / "g")] == ["folder", "file", "nothing"]
    assert not is_file(Path("x" * 300)) and not is_file(Path("\0"))
