"""`dni-fx inspect`: of a model, and of what was saved."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from command_line import run
from json_schemas import check_schema

NET = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return torch.tanh(self.linear(x)) + x

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(*(Block() for _ in range(14)))
        self.head = nn.Linear(8, 8)
        self.head.weight = self.blocks[0].linear.weight

    def forward(self, x, labels):
        y = self.head(self.blocks(x))
        return nn.functional.cross_entropy(y, labels), y

model = Net()
example_inputs = torch.rand(4, 8), torch.zeros(4, dtype=torch.int64)
"""
RECURRENT = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x, state):
        y, state = self.lstm(x, state)
        return {"y": self.head(y), "next": state}

model = Net()
example_inputs = torch.rand(3, 5, 4), (torch.zeros(1, 3, 8), torch.zeros(1, 3, 8))
frozen = Net().requires_grad_(False)
sequential = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "recurrent.py").write_text(RECURRENT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(capsys.readouterr().out)
    return data


def test_the_places_of_a_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "inspect", "net.py") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Net has 1.02 k parameters in 15 layers; the front end fx captured it.")
    assert "blocks.0.linear.weight and head.weight are one parameter" in " ".join(shown.split())
    assert "loss: the model returns its own, cross_entropy, with the labels labels" in shown
    assert "more: --all" in shown and "net.py:11" in shown and max(map(len, shown.splitlines())) <= 80
    assert run(monkeypatch, "inspect", "net.py", "--json") == 0
    data = found(capsys)
    check_schema("inspect", data)
    places = data["places"]
    assert [place["name"] for place in places] == [*(f"blocks.{i}" for i in range(13)), "blocks"]
    assert places[0]["line"] == ["net.py:11", "return torch.tanh(self.linear(x)) + x"]
    names = ",".join(place["name"] for place in places)
    assert run(monkeypatch, "plan", "net.py", "--cuts", names, "--json") == 0  # names that --cuts takes
    plan = found(capsys)
    cuts = plan["cuts"]
    assert [cut["after"] for cut in cuts] == [place["after"] for place in places]
    assert [cut["tensors"] for cut in cuts] == [place["tensors"] for place in places]
    # As in the plan, which counts what two nodes keep twice.
    for share, key, error in (("forward", "forward", 1e-9), ("saved", "activation_bytes", 0.05)):
        below = list(itertools.accumulate(segment[key] for segment in plan["segments"]))
        assert [place[share] for place in places] == pytest.approx([part / below[-1] for part in below[:-1]], rel=error)


def test_state_and_no_place(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "inspect", "recurrent.py:model", "--json") == 0
    data = found(capsys)
    assert data["state"] == {"state": "next"} and data["labels"] == []
    assert run(monkeypatch, "inspect", "recurrent.py:frozen") == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "0 of them trainable" in shown and "It cannot be cut: the model has no legal cut" in shown
    assert run(monkeypatch, "inspect", "recurrent.py:sequential", "--json", "--input", "2x4") == 0
    assert [place["line"] for place in found(capsys)["places"]] == [["", ""], ["", ""]]  # no code of the person's


def test_what_was_saved(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "rewrite", "net.py", "--cuts", "blocks.3", "--no-diff") == 0
    capsys.readouterr()
    assert run(monkeypatch, "inspect", "net_dni") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith("A rewritten Net: 2 segments, cut after add_3; captured")
    assert "the files are those that were saved" in shown and "weights.safetensors" in shown
    (folder / "net_dni" / "model.py").write_text("raise SystemExit('code of the folder runs')")
    assert run(monkeypatch, "inspect", "net_dni", "--json") == 0
    data = found(capsys)
    check_schema("inspect-saved", data)
    assert data["unchanged"] is False and data["unlock"] == "backward" and len(data["cuts"]) == 1
    assert run(monkeypatch, "inspect", "net_dni/plan.json") == 0
    assert capsys.readouterr().out.startswith("A plan of a rewritten Net: 2 segments")
    assert run(monkeypatch, "inspect", "missing.json") == 2
