"""A folder of the front end modules holds a record of calls as data, and gives the same net again."""

import ast
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import Nested, Twice
from torch import Tensor, nn

import dni_fx

X = torch.rand(4, 6)


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y, (h, _) = self.lstm(x.unsqueeze(1))
        return self.head(y + h[0].unsqueeze(1))


OPTIONS: list[dict[str, Any]] = [
    {},
    {"unlock": "none", "classes": 3},
    {"classes": 3, "loss": "cross_entropy", "synthesizer": "guided_head"},
]


@pytest.mark.parametrize("make", [Twice, Nested, Several])
@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "labels", "guided_head"])
def test_the_same_net_again(make: type[nn.Module], options: dict[str, Any], tmp_path: Path) -> None:
    net = dni_fx.transform(make(), X, frontend="modules", cuts=2, **options)
    dni_fx.save(net, tmp_path / "out")
    again = dni_fx.load(tmp_path / "out", model=make())
    assert again.code == net.code and [n.name for n in again.graph.nodes] == [n.name for n in net.graph.nodes]
    diff = (tmp_path / "out/graph.diff").read_text(encoding="utf-8")
    assert diff == dni_fx.diff(net.dni_original, net).to_text()
    lines = [replace(line, source="") for line in dni_fx.diff(net.dni_original, net).lines]
    assert lines == list(dni_fx.diff(again.dni_original, again).lines), "a loaded net knows no lines of source"
    dni_fx.save(again, tmp_path / "more")
    assert (tmp_path / "more/model.py").read_text() == (tmp_path / "out/model.py").read_text()


def test_the_file_holds_no_code_of_a_graph(tmp_path: Path) -> None:
    net = dni_fx.transform(Twice(), X, frontend="modules", cuts=2)
    dni_fx.save(net, tmp_path / "out")
    text = (tmp_path / "out/model.py").read_text(encoding="utf-8")
    functions = [node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    assert functions == ["__init__"]
    assert "No code of a graph is here" in text and text.count("('b', ()),") == 3 and "# cut 0" in text


def test_a_folder_of_an_older_version_is_read(tmp_path: Path) -> None:
    """Its record is written as the code of a forward."""
    net = dni_fx.transform(Twice(), X, frontend="modules", cuts=2)
    dni_fx.save(net, tmp_path / "out")
    file = tmp_path / "out/model.py"
    code = net.code.replace("dni_fx_ops_decouple", "dni_fx.ops.decouple").strip()
    lines = [line.split(";")[0] for line in code.splitlines()]
    text = file.read_text(encoding="utf-8")
    start, end = text.index("    dni_calls = ["), text.index("    def __init__")
    older = (text[:start] + text[end:]).replace(
        "import dni_fx.store.saved\n", "import dni_fx.ops\nimport dni_fx.store.saved\n"
    )
    file.write_text(older + "\n" + "\n".join(f"    {line}" for line in lines) + "\n", encoding="utf-8")
    plan = tmp_path / "out/plan.json"
    data = json.loads(plan.read_text(encoding="utf-8"))
    plan.write_text(json.dumps({k: v for k, v in data.items() if k != "digests"}), encoding="utf-8")
    again = dni_fx.load(tmp_path / "out", model=Twice())
    assert again.code == net.code
