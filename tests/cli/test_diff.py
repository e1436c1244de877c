"""`dni-fx diff` between models, saved folders and plans, and its errors."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import run
from json_schemas import check_schema

from dni_fx.plans import Plan

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, layers=8, act=torch.tanh):
        super().__init__()
        self.layers, self.act = nn.ModuleList(nn.Linear(6, 6) for _ in range(layers)), act

    def forward(self, x):
        for layer in self.layers:
            x = self.act(layer(x))
        return x

model, other = Net(), Net(act=torch.relu)
example_inputs = torch.rand(4, 6)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, two plans, and two saved nets."""
    folder = tmp_path_factory.mktemp("diff")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("net.py").write_text(NET)
        Path("none.json").write_text("{}")
        Path("weights.pt").write_bytes(b"x")
        Path("empty").mkdir()
        for cuts, name in (("tanh_3", "two"), ("tanh_1,tanh_5", "three")):
            assert run(patch, "rewrite", "net.py", "--cuts", cuts, "-o", name, "--no-diff", "--no-verify") == 0
            Path(f"{name}.json").write_text(replace(Plan.load(name), rewrite=None).to_json())
    return folder


@pytest.fixture(autouse=True)
def here(made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(made)
    monkeypatch.setenv("COLUMNS", "80")
    capsys.readouterr()


def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(monkeypatch, "diff", *arguments) == 0
    return capsys.readouterr().out


def test_a_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(monkeypatch, capsys, "two")
    assert "  ... 5 lines of segment 0" in text and "= cut 0" in text and "# net.py:12" in text
    assert text.endswith("lines: 6 added, 1 removed, 17 same\n")
    assert len(shown(monkeypatch, capsys, "two", "--context", "1")) < len(text)
    whole = shown(monkeypatch, capsys, "two", "--all")
    assert whole.startswith(Path("two/graph.diff").read_text()) and "..." not in whole
    assert "tanh_3 4x6: linear" in shown(monkeypatch, capsys, "two", "--summary")
    columns = shown(monkeypatch, capsys, "two", "-y")
    assert "before" in columns and max(map(len, columns.splitlines())) <= 80
    lines = json.loads(shown(monkeypatch, capsys, "two", "--json"))
    check_schema("diff", lines)
    assert lines[1] == {
        "kind": "same",
        "text": 'layers_0 = getattr(self.layers, "0")(x)',
        "place": "segment 0",
        "source": "net.py:12",
    }


def test_rewrite_shows_the_folded_diff(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for options, is_folded in ((), True), (("--all",), False):
        command = "rewrite", "net.py", "--cuts", "tanh_3", "--no-verify", "-o", f"again{len(options)}"
        assert run(monkeypatch, *command, *options) == 0
        text = capsys.readouterr().out
        assert ("... 5 lines of segment 0" in text) == is_folded and "lines: 6 added" in text


def test_a_model_and_its_plan_give_the_diff_of_the_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """So do the model and the folder, and the plan in the folder."""
    expected = shown(monkeypatch, capsys, "two", "--json")
    for other in ("two.json", "two", "two/plan.json"):
        assert shown(monkeypatch, capsys, "net.py", other, "--json") == expected
    text = shown(monkeypatch, capsys, "net.py", "two.json", "--input", "9x6")
    assert text.startswith("--- net.py\n+++ two.json\n")
    back = shown(monkeypatch, capsys, "two.json", "net.py")
    assert back.endswith("lines: 1 added, 6 removed, 17 same\n") and "- tanh_3_detached = " in back


def test_two_models_and_two_folders(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(monkeypatch, capsys, "net.py:model", "net.py:other")
    assert "- tanh = torch.tanh(layers_0)" in text and "+ relu = torch.relu(layers_0)" in text and "= " not in text[:40]
    text = shown(monkeypatch, capsys, "two", "three")
    assert "- tanh_3_detached = tanh_3.detach()" in text and "+ tanh_1_detached = tanh_1.detach()" in text


def test_plans(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(monkeypatch, capsys, "two.json", "three.json")
    assert "after tanh_3" in text and "after tanh_1" in text and "segments" in text
    assert "rewritten" in shown(monkeypatch, capsys, "two", "two.json")
    found = json.loads(shown(monkeypatch, capsys, "two.json", "three.json", "--json"))
    check_schema("diff-plans", found)
    assert {"field": "segments", "before": "2", "after": "3"} in found


SAME = ["two two", "two two --summary", "two two -y", "net.py net.py", "two.json two.json", "two two/plan.json"]


@pytest.mark.parametrize("arguments", SAME)
def test_no_differences(arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(monkeypatch, capsys, *arguments.split()) == "no differences\n"


def test_the_same_code_by_other_plans(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    copy = Path("copy")
    copy.mkdir()
    (copy / "graph.diff").write_text(Path("two/graph.diff").read_text())
    (copy / "plan.json").write_text(replace(Plan.load("two"), why="asked for").to_json())
    text = shown(monkeypatch, capsys, "two", "copy")
    assert text == "no differences in the code, but in the plans: dni-fx diff two/plan.json copy/plan.json\n"
    assert "asked for" in shown(monkeypatch, capsys, "two/plan.json", "copy/plan.json")


BAD = [
    (["nothing"], "no such file or folder: nothing"),
    (["two", "nothing"], "no such file or folder: nothing"),
    (["empty"], "it holds no graph.diff"),
    (["two", "empty"], "cannot read the plan empty/plan.json"),
    (["net.py"], "net.py alone cannot be compared: give a second side, a folder or a plan.json"),
    (["two.json"], "two.json alone cannot be compared"),
    (["weights.pt", "two"], "weights.pt cannot be compared"),
    (["net.py", "none.json"], "none.json is not a plan that dni-fx wrote"),
    (["net.py", "missing.json"], "cannot read the plan missing.json"),
    (["net.py:other", "two.json"], "the plan was made for another graph"),
    (["net.py:nett", "two.json"], "net.py:nett: no attribute 'nett'"),
    (["two", "--input", "4x6"], "--input is for a model"),
    (["two", "-y", "--summary"], "exclude each other"),
    (["two", "-y", "--json"], "exclude each other"),
    (["two", "--all", "--context", "1"], "exclude each other"),
    (["two.json", "three.json", "-y"], "are for graphs"),
]


@pytest.mark.parametrize("arguments, message", BAD)
def test_bad_input(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "diff", *arguments) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1 and message in captured.err and not captured.out


@pytest.mark.parametrize("content", [b"", b"\n", b"hello\n", b"\xff\xfe"], ids=["empty", "blank", "text", "binary"])
def test_a_damaged_diff(
    content: bytes, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("damaged").mkdir(exist_ok=True)
    Path("damaged/graph.diff").write_bytes(content)
    assert run(monkeypatch, "diff", "damaged") == 2
    captured = capsys.readouterr()
    assert not captured.out and captured.err.startswith("error: cannot read damaged/graph.diff: ")


def test_a_folder_that_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("two", tmp_path / "changed")
    (tmp_path / "changed" / "model.py").write_text("")
    assert run(monkeypatch, "diff", str(tmp_path / "changed"), "--summary") == 0
    assert "warning: " in capsys.readouterr().err


def test_inputs_that_do_not_fit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "diff", "net.py", "two.json", "--input", "4x7") == 2
    assert "does not run on the example inputs" in capsys.readouterr().err
