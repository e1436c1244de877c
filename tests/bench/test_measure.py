"""`dni-fx bench`: every way to train trains the same net, and memory is what it should be."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from dni_fx import DniFxError
from dni_fx.bench.measure import Row, measure
from dni_fx.bench.table import check_plot, plot, spark
from dni_fx.bench.ways import WARM_UP, Options, backprop, blocks, parse_segments, segments, ways
from dni_fx.cli.commands import app
from dni_fx.model.inputs import given

WIDTH, ROWS = 64, 128
X = torch.rand(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.linear(x)))


def deep() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Sequential(*[Block() for _ in range(9)]), nn.Linear(WIDTH, 2))


OPTIONS = Options(cuts=segments(3), steps=2, synthesizer="linear")


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    return {row.name: row for row in measure(deep(), given(X, None), OPTIONS)}


def test_memory_is_in_the_order_that_it_should_be(rows: dict[str, Row]) -> None:
    assert not [row.failed for row in rows.values() if row.failed]
    backprop = rows["backprop"]
    parameters = 4 * sum(p.numel() for p in deep().parameters())
    assert rows["checkpointed blocks"].activations < backprop.activations
    assert rows["checkpointed √n"].activations < backprop.activations
    assert rows["compiler, half"].activations < backprop.activations
    assert rows["3 segments"].activations < 0.6 * backprop.activations
    assert rows["3 segments, stepping"].peak < rows["3 segments"].peak
    assert rows["step in backward"].peak < backprop.peak
    for row in rows.values():
        assert max(row.trace) == row.peak and row.milliseconds > 0 and row.ratio.low <= row.ratio.high
    # At the end of the backward pass all gradients are there.
    assert backprop.peak > parameters


@pytest.mark.parametrize("name", [name for name, _ in ways(OPTIONS) if "segments" not in name])
def test_the_other_ways_train_the_same_net(name: str) -> None:
    make = dict(ways(OPTIONS))[name]
    nets = [copy.deepcopy(deep()), copy.deepcopy(deep())]
    trainees = [backprop(nets[0], given(X, None), OPTIONS), make(nets[1], given(X, None), OPTIONS)]
    for trainee in trainees:
        for _ in range(3 - WARM_UP * (name == "compiler, half" and trainee is trainees[1])):
            trainee.step()
    for one, other in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(one, other)


def test_the_model_is_left_as_it_is() -> None:
    model = deep()
    before = copy.deepcopy(model.state_dict())
    list(measure(model, given(X, None), Options(cuts={}, steps=2, others=False)))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_what_cannot_be_measured_is_a_row_that_says_why() -> None:
    model = nn.ModuleDict({"a": nn.Linear(WIDTH, WIDTH)})
    model.forward = lambda x: model["a"](x)  # type: ignore[method-assign]
    with pytest.raises(DniFxError, match="no repeated blocks"):
        blocks(model)
    found = list(measure(deep(), given(X, None), Options(cuts={"nowhere": ["nothing"]}, steps=2, others=False)))
    assert [bool(row.failed) for row in found] == [False, True, True]


def test_a_model_that_does_not_train_is_refused() -> None:
    with pytest.raises(DniFxError, match="cannot be trained"):
        next(measure(deep(), given(torch.rand(3, 5), None), OPTIONS))
    with pytest.raises(DniFxError, match="no output carries gradient"):
        next(measure(deep().requires_grad_(False), given(X, None), OPTIONS))
    with pytest.raises(DniFxError, match="cannot be copied"):
        next(measure(nn.utils.weight_norm(nn.Linear(WIDTH, 2)), given(X, None), OPTIONS))


def test_blocks() -> None:
    assert blocks(deep()) == [f"1.{i}" for i in range(9)]
    plain = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    assert blocks(plain) == ["0", "1", "2"]
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 3, enable_nested_tensor=False)
    assert blocks(nn.Sequential(encoder)) == [f"0.layers.{i}" for i in range(3)]


@pytest.mark.parametrize("text", ["", "1", "two", "2,,3", "-2"])
def test_bad_numbers_of_segments(text: str) -> None:
    with pytest.raises(DniFxError, match="numbers of segments"):
        parse_segments(text)
    assert parse_segments("2, auto") == {"2 segments": 2, "auto": "auto"}


def test_a_spark_shows_the_most_of_each_part() -> None:
    assert spark([0, 8, 4, 0] * 6, 8)[:2] == "█▄"
    assert len(spark([1], 1)) == len(spark(range(100), 99))


def test_a_picture(rows: dict[str, Row], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot(list(rows.values()), tmp_path / "memory.png")
    assert (tmp_path / "memory.png").stat().st_size > 1000
    with pytest.raises(DniFxError, match="cannot write a picture"):
        check_plot(tmp_path / "nowhere" / "memory.png")


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "model = nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(8, 8), nn.Tanh())])\n"
        "example_inputs = torch.rand(16, 8)\n"
    )
    target = str(tmp_path / "net.py")
    done = CliRunner().invoke(app, ["bench", target, "--segments", "2", "--steps", "2", "--json"])
    assert done.exit_code == 0, done.output
    found: list[dict[str, Any]] = json.loads(done.stdout)
    assert [row["name"] for row in found][-2:] == ["2 segments", "2 segments, stepping"]
    assert found[0]["peak_bytes"] > 0 and set(found[0]["time_ratio"]) == {"median", "low", "high"}
    done = CliRunner().invoke(app, ["bench", target, "--segments", "2,auto", "--steps", "2"])
    assert done.exit_code == 0 and "stepping" in done.stdout and "KiB that the step makes" in done.stdout
    done = CliRunner().invoke(app, ["bench", target, "--classes", "1"])
    assert isinstance(done.exception, DniFxError) and "classes must be 2 or more" in str(done.exception)


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
