"""The command `dni-fx bench`."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from json_schemas import check_schema
from typer.testing import CliRunner

from dni_fx import DniFxError
from dni_fx.bench.measure import Row
from dni_fx.bench.options import Options
from dni_fx.cli.commands import app


@pytest.fixture
def target(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "model = nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(8, 8), nn.Tanh())])\n"
        "example_inputs = torch.rand(16, 8)\n"
    )
    return str(tmp_path / "net.py")


@pytest.fixture
def no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the other ways to train: tests/bench/test_measure.py measures each."""
    monkeypatch.setattr("dni_fx.bench.Options", partial(Options, others=False))


@pytest.mark.usefixtures("no_others")
def test_json(target: str) -> None:
    done = CliRunner().invoke(app, ["bench", target, "--segments", "2", "--steps", "2", "--json"])
    assert done.exit_code == 0, done.output
    found: list[dict[str, Any]] = json.loads(done.stdout)
    check_schema("bench", found)
    assert [row["name"] for row in found][-2:] == ["2 segments", "2 segments, stepping"]
    assert found[0]["peak_bytes"] > 0 and set(found[0]["time_ratio"]) == {"median", "low", "high"}


@pytest.mark.usefixtures("no_others")
def test_with_a_loss_the_cuts_get_exits(target: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    command = [
        "bench",
        target,
        "--segments",
        "2",
        "--steps",
        "2",
        "--loss",
        "mse_loss",
        "--json",
        "--report",
        str(page),
    ]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert not any("failed" in row for row in json.loads(done.stdout))
    assert '"exit":{' in page.read_text(encoding="utf-8")
    wrong = CliRunner().invoke(app, ["bench", target, "--loss", "nope"])
    assert isinstance(wrong.exception, DniFxError) and "nope" in str(wrong.exception)


RECURRENT = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.head = nn.GRU(4, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x, state):
        y, state = self.gru(x, state)
        return self.head(y), state

model = Net()
example_inputs = torch.rand(3, 5, 4), torch.zeros(1, 3, 8)
"""


@pytest.mark.usefixtures("no_others")
def test_named_cuts_and_cuts_in_time(target: str, tmp_path: Path) -> None:
    more = ["--frontend", "modules", "--context-size", "3", "--training", "lr=0.1", "--training", "every=2"]
    cuts = ["--cuts", "1,5", "--cuts", "2", "--cuts", "every:Tanh", "--steps", "2", "--json"]
    done = CliRunner().invoke(app, ["bench", target, *cuts, *more])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    names = [
        "backprop",
        "after 1, 5",
        "after 1, 5, stepping",
        "2 segments",
        "2 segments, stepping",
        "every:Tanh",
        "every:Tanh, stepping",
    ]
    assert [row["name"] for row in rows] == names and not any("failed" in row for row in rows)
    (tmp_path / "recurrent.py").write_text(RECURRENT)
    recurrent = ["bench", str(tmp_path / "recurrent.py"), "--state", "state=1"]
    done = CliRunner().invoke(app, [*recurrent, "--segments", "auto", "--steps", "2", "--json"])
    assert done.exit_code == 0, done.output
    assert not any("failed" in row for row in json.loads(done.stdout))


@pytest.mark.slow
def test_the_table_of_all_ways(target: str) -> None:
    done = CliRunner().invoke(app, ["bench", target, "--segments", "2,auto", "--steps", "2"])
    assert done.exit_code == 0 and "stepping" in done.stdout and "KiB that the step makes" in done.stdout


def test_bad_options(target: str) -> None:
    for options, message in (
        (["--classes", "1"], "classes must be 2 or more"),
        (["--classes", "3", "--context-size", "3"], "classes= and context_size= exclude each other"),
        (["--frontend", "nope"], "frontend='nope'"),
        (["--cuts", "1"], "cuts=1: a number of segments is 2 or more"),
        (["--segments", ""], "--segments ''"),
        (["--state", "x="], "--state 'x='"),
    ):
        done = CliRunner().invoke(app, ["bench", target, *options])
        assert isinstance(done.exception, DniFxError) and message in str(done.exception)


@pytest.mark.usefixtures("no_others")
def test_the_command_when_nothing_of_ours_runs_or_it_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\nmodel = torch.nn.Linear(8, 8)\nexample_inputs = torch.rand(16, 8)\n"
    )
    command = ["bench", str(tmp_path / "net.py"), "--segments", "2", "--steps", "2"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1 and "not measured: 2 segments" in done.stdout

    def interrupted(*_: Any) -> Any:
        yield Row("backprop", 1, 1)
        raise KeyboardInterrupt

    monkeypatch.setattr("dni_fx.bench.measure", interrupted)
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 130 and "backprop" in done.stdout
