"""`dni-fx compare` on a file of a person's own."""

import json
from pathlib import Path

import pytest
from command_line import run
from json_schemas import check_schema

NET = """
import torch
from torch import nn

def block():
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh())

def build_model():
    return nn.Sequential(block(), block(), block(), nn.Linear(8, 3))

def batches():
    while True:
        yield torch.randn(16, 8), torch.randint(0, 3, (16,))

def broken():
    yield torch.randn(16, 8), torch.randint(0, 3, (16,))
    raise ValueError("the disk is gone")

def accuracy(net):
    return (net(torch.ones(4, 8)).argmax(1) == 0).float().mean()

def sgd(parameters):
    return torch.optim.SGD(parameters, 0.1)
"""


@pytest.fixture
def net(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(NET)
    return str(tmp_path / "net.py")


def test_the_verdict_and_the_files(
    net: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare", net, "--data", f"{net}:batches", "--steps", "10", "--cuts", "2", "--cuts", "3"]
    more = ["--metric", f"{net}:accuracy", "--optimizer", f"{net}:sgd", "--resume", str(tmp_path / "run.pt")]
    assert (
        run(
            monkeypatch,
            *arguments,
            *more,
            "--plot",
            str(tmp_path / "curves.png"),
            "--report",
            str(tmp_path / "page.html"),
        )
        == 0
    )
    text = capsys.readouterr().out
    assert text.startswith("Cut into") and "3 segments" in text and "score" in text
    assert max(map(len, text.splitlines())) <= 80
    assert {p.name for p in tmp_path.iterdir()} >= {"run.pt", "curves.png"}
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "beside backprop" in page and '"title":"score"' in page
    assert run(monkeypatch, *arguments, *more, "--json") == 0
    data = json.loads(capsys.readouterr().out)
    check_schema("compare", data)
    ways = data["ways"]
    assert data["verdict"][0].startswith("Cut into")
    assert [way["name"] for way in ways] == [
        "backprop",
        "checkpointing",
        "2 segments",
        "3 segments",
    ]


def test_how_the_synthesizers_are_trained(
    net: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", net, "--data", f"{net}:batches", "--steps", "10", "--cuts", "2", "--json"]
    training = ["--training", "lr=0.5", "--training", "warmup=2", "--classes", "3", "--synthesizer", "linear"]
    assert run(monkeypatch, *command, *training) == 0
    ways = json.loads(capsys.readouterr().out)["ways"]
    assert ways[2]["name"] == "2 segments, linear, classes=3, warmup=2, lr=0.5" and not ways[2]["failed"]
    assert run(monkeypatch, *command, *training, "--step", "segment") == 0
    assert json.loads(capsys.readouterr().out)["ways"][2]["name"].count("step=segment") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "{}"], "name what is in the file"),
        (["--data", "{}:nope"], "no attribute 'nope'"),
        (["--data", "{}:broken"], "net.py:17: ValueError: the disk is gone"),
        (["--data", "{}:batches", "--steps", "3"], "--steps=3: 10 or more"),
        (["--data", "{}:batches", "--loss", "nope"], "--loss='nope'"),
        (["--data", "{}:batches", "--loss", "{}:nope"], "no attribute 'nope'"),
        (["--data", "{}:build_model"], "--data"),
        (["--plot", "curves.txt"], "curves.txt"),
        (["--synthesizer", "nope", "--input", "4x8"], "nope"),
        (["--step", "twice"], "--step='twice': there are loop, segment"),
        (["--training", "nope=1"], "--training 'nope=1': KEY=VALUE, with scale"),
        (["--context-size", "3"], "--context-size: the targets of the batches are the vectors: give --data"),
    ],
)
def test_one_line_for_wrong_options(
    options: list[str], message: str, net: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "compare", net, *(option.format(net) for option in options)) in (2, 3)
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == "" and len(captured.err.strip().splitlines()) == 1
