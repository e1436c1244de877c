"""Pictures of a graph: dot text, graphviz, JSON, node data."""

import json
import shutil
from pathlib import Path

import pytest
from made_plan import made_plan

from dni_fx.errors import DniFxError
from dni_fx.page.pictures import check_picture, dot_text, write_node_data, write_picture


def test_dot_text() -> None:
    plan, nodes = made_plan(2, 2, 3, name='say "x"')
    text = dot_text(plan, nodes)
    assert text.count("subgraph") == 2 + 2 + 4  # segments, stages, blocks
    assert '"say \\"x\\"_0" -> "say \\"x\\"_1";' in text
    assert text.count("penwidth=2") == 2  # both edges across the cut
    assert "4x8\\n128 B" in text
    assert text.count("{") == text.count("}")


def test_json_and_node_data(tmp_path: Path) -> None:
    plan, nodes = made_plan(2, 1, 3)
    write_picture(tmp_path / "x.json", plan, nodes)
    data = json.loads((tmp_path / "x.json").read_text())
    assert [node["name"] for node in data["nodes"]] == [node.name for node in nodes]
    assert data["cuts"][0]["tensors"] == [{"node": "op_2", "shape": [4, 8], "dtype": "float32", "bytes": 128}]
    write_node_data(tmp_path / "me.json", nodes)
    results = json.loads((tmp_path / "me.json").read_text())["graph"]["results"]
    assert {name: one["value"] for name, one in results.items()} == {node.name: node.segment for node in nodes}


@pytest.mark.parametrize(("name", "there"), [("x.txt", True), ("x", True), ("x.svg", False), ("x.png", False)])
def test_what_cannot_be_written(name: str, there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: "/bin/dot" if there else None)
    with pytest.raises(DniFxError, match="give a \\.svg" if there else "needs the program dot"):
        check_picture(Path(name))
