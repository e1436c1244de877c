"""Every way to train trains the same net, and takes the memory that it should."""

import copy
from pathlib import Path

import pytest
import torch
from nets import deep
from torch import nn

from dni_fx import DniFxError
from dni_fx.bench.measure import Row, measure
from dni_fx.bench.options import Options, segments
from dni_fx.bench.table import check_plot, plot
from dni_fx.bench.ways import WARM_UP, backprop, blocks, ways
from dni_fx.model.inputs import to_inputs

WIDTH, ROWS = 64, 128
X = torch.rand(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))


OPTIONS = Options(cuts=segments(3), steps=2, synthesizer="linear")


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    return {row.name: row for row in measure(deep(), to_inputs(X, None), OPTIONS)}


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
    trainees = [backprop(nets[0], to_inputs(X, None), OPTIONS), make(nets[1], to_inputs(X, None), OPTIONS)]
    for trainee in trainees:
        for _ in range(3 - WARM_UP * (name == "compiler, half" and trainee is trainees[1])):
            trainee.step()
    for one, other in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(one, other)


def test_where_auto_makes_no_cut_its_row_says_so() -> None:
    options = Options(cuts=segments(2, "auto"), steps=2, others=False)
    small = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    found = {row.name: row.failed for row in measure(small, to_inputs(torch.rand(4, 4), None), options)}
    assert not found["2 segments"] and "the net has no cuts: auto makes none" in found["auto"]


def test_the_model_is_left_as_it_is() -> None:
    model = deep()
    before = copy.deepcopy(model.state_dict())
    list(measure(model, to_inputs(X, None), Options(cuts={}, steps=2, others=False)))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_what_cannot_be_measured_is_a_row_that_says_why() -> None:
    model = nn.ModuleDict({"a": nn.Linear(WIDTH, WIDTH)})
    model.forward = lambda x: model["a"](x)  # type: ignore[method-assign]
    with pytest.raises(DniFxError, match="no repeated blocks"):
        blocks(model)
    found = list(measure(deep(), to_inputs(X, None), Options(cuts={"nowhere": ["nothing"]}, steps=2, others=False)))
    assert [bool(row.failed) for row in found] == [False, True, True]


def test_a_model_that_does_not_train_is_refused() -> None:
    with pytest.raises(DniFxError, match="cannot be trained"):
        next(measure(deep(), to_inputs(torch.rand(3, 5), None), OPTIONS))
    with pytest.raises(DniFxError, match="no output carries gradient"):
        next(measure(deep().requires_grad_(False), to_inputs(X, None), OPTIONS))
    with pytest.raises(DniFxError, match="cannot be copied"):
        next(measure(nn.utils.weight_norm(nn.Linear(WIDTH, 2)), to_inputs(X, None), OPTIONS))


def test_a_picture(rows: dict[str, Row], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot(list(rows.values()), tmp_path / "memory.png")
    assert (tmp_path / "memory.png").stat().st_size > 1000
    with pytest.raises(DniFxError, match="cannot write a picture"):
        check_plot(tmp_path / "nowhere" / "memory.png")
