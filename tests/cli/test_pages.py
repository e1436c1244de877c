"""`--report` and `dni-fx graph`: files, and one line for what cannot be written."""

import json
from pathlib import Path

import pytest
from command_line import run

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(3)))

    def forward(self, x):
        return self.layers(x)

example_inputs = torch.rand(4, 6)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def page_data(path: Path) -> dict[str, object]:
    data: dict[str, object] = json.loads(path.read_text().split('id="data">')[1].split("</script>")[0])
    return data


@pytest.mark.parametrize(
    ("arguments", "holds"),
    [
        (["plan", "net.py", "--cuts", "2"], ""),
        (["rewrite", "net.py", "--cuts", "2"], "diff"),
        (["check", "net.py", "--cuts", "2"], "checks"),
        (["bench", "net.py", "--segments", "2", "--steps", "2"], "bench"),
    ],
)
def test_each_command_writes_its_page(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], holds: str
) -> None:
    assert run(monkeypatch, *arguments, "--report", "out.html") == 0
    data = page_data(folder / "out.html")
    graph, memory = data["graph"], data["memory"]
    assert isinstance(graph, dict) and isinstance(memory, dict)
    assert len(graph["segments"]) == 2 and len(graph["nodes"]) == 8
    assert graph["nodes"][1]["line"][0] == "net.py:11"
    assert memory["measured"] == (holds == "bench") and len(memory["series"]) > 1
    assert data["verdict"]
    assert {name for name in ("diff", "checks", "bench") if data[name]} == {holds} - {""}


def test_a_simulated_plan_writes_a_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "plan", "net.py", "--cuts", "2", "--simulate", "--report", "out.html") == 0
    graph = page_data(folder / "out.html")["graph"]
    assert isinstance(graph, dict) and len(graph["nodes"]) == 8


def test_check_of_a_folder_writes_a_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "rewrite", "net.py", "--cuts", "2", "-o", "out") == 0
    assert run(monkeypatch, "check", "out", "--report", "out.html") == 0
    graph = page_data(folder / "out.html")["graph"]
    assert isinstance(graph, dict) and len(graph["nodes"]) == 8


def test_graph_writes_files(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "graph", "net.py", "--cuts", "2", "-o", "x.dot", "--model-explorer", "me.json") == 0
    assert (folder / "x.dot").read_text().startswith('digraph "Net" {')
    assert len(json.loads((folder / "me.json").read_text())["graph"]["results"]) == 8
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["graph", "net.py", "-o", "x.txt"],
        ["graph", "net.py", "-o", "nowhere/x.dot"],
        ["graph", "net.py", "-o", "x.dot", "--model-explorer", "x.txt"],
        ["plan", "net.py", "--report", "x.txt"],
        ["rewrite", "net.py", "--report", "nowhere/x.html"],
    ],
)
def test_a_wrong_file_is_one_line_before_the_model_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    (folder / "net.py").write_text("raise SystemError('loaded')")
    assert run(monkeypatch, *arguments) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: cannot write") and shown.count("\n") == 1
    assert [path.name for path in folder.iterdir()] == ["net.py"]
