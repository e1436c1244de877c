"""The command line on models that it did not see before: results, exit codes, streams."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import run
from json_schemas import check_schema

import dni_fx
from dni_fx.proof.properties import CHECKS

NET = """
import torch
from torch import nn

print("a model that prints")

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.conv(x) + x)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(*(Block() for _ in range(3)))
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        print("a forward that prints")
        labels = x.mean((1, 2, 3)).argmax()
        return self.head(self.blocks(self.stem(x)).mean((2, 3))) + 0 * labels

def build_model():
    return Net()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_rewrite_shows_and_writes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run(monkeypatch, "rewrite", "net.py", "--cuts", "every:Block", "--classes", "10", "--training", "warmup=3") == 0
    )
    shown = capsys.readouterr().out
    assert "segments" in shown and "= cut 1" in shown and "wrote net_dni" in shown
    assert "\x1b[" not in shown
    net = dni_fx.load("net_dni")
    x = torch.rand(2, 3, 16, 16)
    net(x, dni_context=torch.tensor([1, 2])).sum().backward()
    assert len(net.dni.plan.segments) == 4 and net.dni.rewrite.training.warmup == 3
    assert run(monkeypatch, "diff", "net_dni") == 0
    assert "= cut 1" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["rewrite", "plan"])
def test_json_alone_is_on_stdout(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, command, "net.py", "--cuts", "2", "--json", "--input", "4x3x8x8") == 0
    captured = capsys.readouterr()
    plan = json.loads(captured.out)
    check_schema("plan", plan)
    assert plan["model"] == "Net"
    assert "a forward that prints" in captured.err
    assert (folder / "net_dni").exists() == (command == "rewrite")


def test_a_saved_plan_is_repeated(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "plan", "net.py", "--cuts", "3", "--json") == 0
    (folder / "plan.json").write_text(capsys.readouterr().out)
    assert run(monkeypatch, "rewrite", "net.py", "--cuts", "plan.json", "--no-diff") == 0
    assert "= cut" not in capsys.readouterr().out
    again = dni_fx.load("net_dni").dni.plan
    assert again.cuts == dni_fx.Plan.load("plan.json").cuts


BAD = [
    (["nope.py"], 2, "no such file"),
    (["net.py:Nett"], 2, "did you mean 'Net'"),
    (["net.py", "--cuts", "block"], 2, "nearest names are blocks"),
    (["net.py", "--cuts", "99"], 2, "cannot make 99 segments"),
    (["net.py", "--cuts", "1"], 2, "2 or more"),
    (["net.py", "--cuts", "argmax"], 2, "int64"),
    (["net.py", "--cuts", "head"], 2, "cannot cut after 'head'"),
    (["net.py", "--cuts", "every:Blok"], 2, "Block"),
    (["net.py", "--cuts", "missing.json"], 2, "cannot read the plan"),
    (["net.py", "--input", "4x3y8"], 2, "as in 64x784"),
    (["net.py", "--input", "4x784"], 2, "does not run on the example inputs"),
    (["net.py", "--input", "4x3x8x8", "--input", "4x3"], 2, "do not fit Net.forward"),
    (["net.py", "--synthesizer", "lineal"], 2, "no synthesizer named"),
    (["net.py", "--synthesizer", "linear", "--unlock", "forwards"], 2, "unlock="),
    (["net.py", "--mix", "0.5"], 2, "unlock='none'"),
    (["net.py", "--mix", "1.5", "--unlock", "none"], 2, "between 0 and 1"),
    (["net.py", "--mix", "0.5", "--unlock", "none"], 2, "there are none: give a number of segments, as in --cuts=2"),
    (["net.py", "--classes", "1"], 2, "2 or more"),
    (["net.py", "-o", "taken"], 2, "choose another output folder"),
    (["broken.py"], 3, "broken.py:2"),
    (["raises.py"], 3, "raises.py:1: ZeroDivisionError"),
    (["empty.py"], 2, "holds no model"),
    (["several.py"], 2, "A, B"),
    (["frozen.py"], 1, "no legal cut"),
    (["branches.py"], 3, "branches.py:7"),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_bad_input_gives_one_line_and_writes_nothing(
    number: int, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, code, words = BAD[number]
    linear = "from torch import nn\nclass {0}(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    (folder / "taken").mkdir()
    (folder / "taken/mine.txt").write_text("mine")
    (folder / "broken.py").write_text("x = 1\ndef (:\n")
    (folder / "raises.py").write_text("1 / 0\n")
    (folder / "empty.py").write_text("x = 1\n")
    (folder / "several.py").write_text(linear.format("A") + linear.format("B"))
    (folder / "frozen.py").write_text("from torch import nn\nmodel = nn.Linear(3, 3)\n")
    (folder / "branches.py").write_text(
        linear.format("A")
        + "        self.a = nn.Linear(3, 3)\n    def forward(self, x):\n        if x.sum() > 0: x = -x\n"
        "        return self.a(x)\n"
    )
    before = sorted(folder.rglob("*"))
    assert run(monkeypatch, "rewrite", *arguments) == code
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and words in lines[0], captured.err
    assert "Traceback" not in captured.err
    assert not captured.out
    assert [p for p in sorted(folder.rglob("*")) if "__pycache__" not in str(p)] == before


def test_a_plan_for_another_graph_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "other.py").write_text(NET.replace("range(3)", "range(4)"))
    assert run(monkeypatch, "rewrite", "net.py", "--cuts", "2") == 0
    assert run(monkeypatch, "rewrite", "other.py", "--cuts", "net_dni/plan.json") == 2
    assert "made for another graph" in capsys.readouterr().err


def test_a_bug_of_ours_is_70(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def bug(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("dni_fx.planning.make_plan", bug)
    assert run(monkeypatch, "plan", "net.py") == 70
    assert "bug of dni-fx" in capsys.readouterr().err


def test_version_help_and_list(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--version") == 0
    assert dni_fx.__version__ in capsys.readouterr().out
    assert run(monkeypatch, "rewrite", "--help") == 0
    assert "Examples" in capsys.readouterr().out
    assert run(monkeypatch, "synthesizers") == 0
    shown = capsys.readouterr().out
    assert "linear" in shown and "conv" in shown and "mlp" in shown


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, dni_fx.cli; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("unlock", ["none", pytest.param("backward", marks=pytest.mark.slow)])
def test_check_a_model_and_a_folder(
    unlock: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    assert run(monkeypatch, "check", "net.py", "--cuts", "every:Block", "--unlock", unlock, "--classes", "10") == 0
    assert capsys.readouterr().out.count(" pass ") == 9
    assert (
        run(monkeypatch, "rewrite", "net.py", "--cuts", "2", "--unlock", unlock, "-o", "out", "--context-size", "3")
        == 0
    )
    capsys.readouterr()
    assert run(monkeypatch, "check", "out", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    check_schema("check", report)
    check_schema("plan", json.loads(Path("out/plan.json").read_text()))
    assert report["passed"] and len(report["checks"]) == 9


def test_a_failed_check_is_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    monkeypatch.setitem(CHECKS, "state_dict keys", lambda _: (False, "one is lost"))
    assert run(monkeypatch, "check", "net.py", "--cuts", "2") == 1
    shown = capsys.readouterr().out
    assert "NOT the same network" in shown and "FAIL" in shown and "one is lost" in shown


# ---------------------------------------------------------------------------------------- what is predicted
def test_plan_says_what_it_weighed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run(monkeypatch, "plan", "net.py", "--cuts", "2", "--synthesizer-share", "9") == 0
    shown = capsys.readouterr().out
    for part in (
        "optimal for memory and charges",
        "peak training memory",
        "the peak is in segment",
        "chosen",
        "charges",
        "█",
    ):
        assert part in shown, part
    assert shown.count(" %: ") >= 1  # a plan that lost, and by what


@pytest.mark.parametrize("objective", ["memory", "throughput"])
def test_objectives(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], objective: str
) -> None:
    assert run(monkeypatch, "plan", "net.py", "--cuts", "3", "--objective", objective, "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["verdict"]["objective"] == objective
    assert len(plan["segments"]) == 3
    assert plan["forecast"]["cut"]["slowest"] < plan["forecast"]["backprop"]["slowest"]


def test_a_memory_budget_is_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "plan", "net.py", "--json") == 0
    whole = json.loads(capsys.readouterr().out)["forecast"]["backprop"]["peak_bytes"]
    assert run(monkeypatch, "plan", "net.py", "--memory-budget", f"{2 * whole}B", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["segments"]) == 2  # the fewest
    assert run(monkeypatch, "plan", "net.py", "--memory-budget", "1KiB") == 1
    assert "was found that fits into 1 KiB: the least predicted peak is" in " ".join(capsys.readouterr().err.split())


def test_activations_that_are_computed_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "rewrite", "net.py", "--cuts", "2", "--inside", "checkpoint", "--unlock", "none") == 0
    capsys.readouterr()
    text = (folder / "net_dni" / "model.py").read_text()
    assert text.count("begin_piece(") == text.count("end_piece(") > 0
    assert run(monkeypatch, "check", "net_dni") == 0
    assert run(monkeypatch, "plan", "net.py", "--inside", "twice") == 2
    assert "--inside='twice': there are keep, checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--objective", "balanced"], "objective='balanced': there are memory, throughput"),
        (["--memory-budget", "much"], "'much' is no amount of memory: write 2GiB"),
        (["--memory-budget", "0"], "a memory budget of 0 bytes"),
        (["--synthesizer-share", "-1"], "--synthesizer-share=-1.0: a number above 0"),
        (["--synthesizer-share", "1e-9"], "that they may"),
        (["--cuts", "stem", "--objective", "throughput"], "are for --cuts='auto' or a number of segments"),
        (["--synthesizer", "none"], "no synthesizer named 'none'"),
        (["--classes", "1"], "classes must be 2 or more"),
    ],
)
def test_bad_limits_are_one_line(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert run(monkeypatch, "plan", "net.py", *arguments) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert message in error and "Traceback" not in error


def test_a_plan_of_an_older_version_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It predicts nothing."""
    assert run(monkeypatch, "plan", "net.py", "--cuts", "2", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    del plan["forecast"], plan["verdict"]
    plan["segments"] = [
        {k: v for k, v in s.items() if k in ("nodes", "parameters", "flops", "activation_bytes")}
        for s in plan["segments"]
    ]
    (folder / "old.json").write_text(json.dumps(plan))
    old = dni_fx.Plan.load("old.json")
    assert old.forecast is None
    assert run(monkeypatch, "plan", "net.py", "--cuts", "old.json") == 0
    from rich.console import Console

    from dni_fx.report import plan_table

    Console().print(plan_table(old))


RECURRENT = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x, state):
        y, state = self.lstm(x, state)
        return self.head(y), state

example_inputs = torch.rand(3, 5, 4), (torch.zeros(1, 3, 8), torch.zeros(1, 3, 8))
"""


def test_a_cut_in_time(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "net.py").write_text(RECURRENT)
    assert run(monkeypatch, "rewrite", "net.py", "--state", "auto", "-o", "out") == 0
    shown = capsys.readouterr().out
    assert "cut in time, synthesizer least_squares" in shown and "= cut in time" in shown
    assert run(monkeypatch, "check", "out") == 0
    assert run(monkeypatch, "check", "net.py", "--state", "state=1") == 0
    capsys.readouterr()
    for text, message in (("x=", "auto, or NAME=OUTPUT"), ("h=1", "no argument 'h'; there are x, state")):
        assert run(monkeypatch, "plan", "net.py", "--state", text) == 2
        assert message in capsys.readouterr().err


def test_plan_simulates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def build_model():\n    return nn.Sequential(*[nn.Linear(50_000, 50_000) for _ in range(4)])\n"  # 40 GB
        "values = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))\n"
        "def needs_values():\n    values(torch.ones(1, 8)).sum().item()\n    return values\n"
    )
    net = str(tmp_path / "net.py")
    assert run(monkeypatch, "plan", net, "--input", "64x50000", "--cuts", "2", "--simulate") == 0
    assert "simulated" in capsys.readouterr().out
    assert run(monkeypatch, "plan", f"{net}:needs_values", "--input", "4x8", "--cuts", "2", "--simulate") == 0
    assert "simulated" in capsys.readouterr().out
