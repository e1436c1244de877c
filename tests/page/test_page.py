"""The file of a page: whole or not at all, without the network, and with every text escaped."""

import json
import re
from pathlib import Path

import pytest
from made_plan import made_plan

from dni_fx.errors import DniFxError
from dni_fx.page import Page, Series, write_page
from dni_fx.page.page import graph_data

EVIL = "</script><img src=x onerror=alert(1)>"


def data_of(text: str) -> dict[str, object]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    data: dict[str, object] = json.loads(found[1])
    return data


def test_texts_cannot_end_the_script(tmp_path: Path) -> None:
    plan, nodes = made_plan(2, 1, 3, name=EVIL)
    write_page(tmp_path / "out.html", Page(EVIL, plan, nodes, verdict=(EVIL,), diff=EVIL))
    text = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert EVIL not in text and "<img src=x" not in text
    data = data_of(text)
    assert data["title"] == data["diff"] == EVIL
    assert data["graph"] == json.loads(json.dumps(graph_data(plan, nodes)))


def test_a_page_needs_no_network(tmp_path: Path) -> None:
    write_page(tmp_path / "out.html", Page("a", *made_plan(2, 1, 3)))
    text = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert not re.search(r'<(script|link|img|iframe)[^>]+(src|href)="(?!data:)', text)
    assert len(text) < 2_300_000


def test_measured_memory_replaces_the_prediction(tmp_path: Path) -> None:
    plan, nodes = made_plan(2, 1, 3)
    peak = tuple(float(i == 777) for i in range(1000))
    for memory, names, measured in (((), ["backprop", "2 segments"], False), ((Series("x", peak),), ["x"], True)):
        write_page(tmp_path / "out.html", Page("a", plan, nodes, memory=memory))
        data = data_of((tmp_path / "out.html").read_text(encoding="utf-8"))["memory"]
        assert isinstance(data, dict) and data["measured"] == measured
        assert [one["name"] for one in data["series"]] == names
    assert len(data["series"][0]["y"]) == 400 and max(data["series"][0]["y"]) == 1.0


def test_an_old_page_stays_where_the_new_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.html"
    path.write_text("old")

    def full(self: Path, *args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DniFxError, match="No space left"):
        write_page(path, Page("a", *made_plan(2, 1, 3)))
    assert path.read_text() == "old" and [one.name for one in tmp_path.iterdir()] == ["out.html"]
