"""`dni_fx.compare`: every way trains as it would alone."""

import copy
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dni_fx
from dni_fx.comparison import Comparison

STEPS = 12


def block() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2), nn.Tanh())


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(block(), block(), block(), nn.Linear(8, 3))


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):  # fewer than steps: the data begins again
        yield torch.randn(16, 8, generator=generator), torch.randint(0, 3, (16,), generator=generator)


def other() -> Iterator[tuple[Tensor, Tensor]]:
    return ((2 * x, y) for x, y in batches())


def compared(**options: Any) -> Comparison:
    return dni_fx.compare(model(), options.pop("data", batches), **{"steps": STEPS, "ways": [{"cuts": 2}]} | options)


def figures(comparison: Comparison) -> list[Any]:
    return [(r.losses, r.scores, r.activations, r.cosines) for r in comparison.records]


def test_each_way_trains_as_alone() -> None:
    net = model()
    before = torch.get_rng_state()
    weights = copy.deepcopy(net.state_dict())
    found = dni_fx.compare(net, batches, steps=STEPS, ways=[{"cuts": 2}, {"cuts": 2, "step": "segment"}])
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    backprop, checkpointing, loop, segment = found.records
    assert backprop.losses == checkpointing.losses != loop.losses == segment.losses
    assert backprop.losses[0] == loop.losses[0]  # one seed, also for the dropout

    alone, data = model(), [*batches(), *batches(), *batches()]
    optimizer = torch.optim.Adam(alone.parameters())
    torch.manual_seed(1)  # that of the random numbers in forward is the one after `seed`
    for loss, (x, y) in zip(backprop.losses, data, strict=False):
        optimizer.zero_grad()
        now = nn.functional.cross_entropy(alone(x), y)
        now.backward()
        optimizer.step()
        assert now.item() == loss


def test_figures() -> None:
    seen: list[int] = []
    found = compared(metric=lambda net: net(torch.zeros(1, 8)).sum(), progress=lambda c: seen.append(c.steps))
    assert seen == list(range(1, STEPS + 1)) and found.samples == 16
    for record in found.records:
        assert len(record.losses) == len(record.seconds) == STEPS and 0 < record.activations <= record.peak
        assert len(record.scores) == 10 and record.scores[-1][0] == STEPS
    assert not found.records[0].cosines and len(found.records[2].cosines) == 1
    assert found.records[2].segments == 2 and "2 segments" in str(found)


def test_without_data() -> None:
    found = dni_fx.compare(model(), example_inputs=torch.zeros(4, 8), steps=10, ways=[{"cuts": 2}])
    assert not found.has_data and "mean nothing" in str(found)


def test_a_way_that_fails_ends_alone() -> None:
    found = compared(ways=[{"cuts": "auto"}, {"cuts": 2}])
    assert "auto makes none" in found.records[2].failed and not found.records[3].failed
    assert "auto makes none" in str(found) and len(found.records[3].losses) == STEPS


@pytest.mark.parametrize("stopped", [1, 5, STEPS])
def test_a_run_goes_on_from_its_file(tmp_path: Path, stopped: int) -> None:
    file = tmp_path / "run.pt"

    def stop(comparison: Comparison) -> None:
        if comparison.steps == stopped:
            os.kill(os.getpid(), signal.SIGINT)

    options: dict[str, Any] = {
        "ways": [{"cuts": 2}, {"cuts": 2, "step": "segment"}, {"cuts": 2}],
        "metric": lambda net: net(torch.randn(1, 8)).sum(),
    }
    whole, first = compared(**options), compared(file=file, progress=stop, **options)
    assert first.steps == stopped and first.interrupted == (stopped < STEPS) and str(first)
    assert figures(compared(file=file, **options)) == figures(whole)
    assert [record.name for record in whole.records[2:]] == ["2 segments", "2 segments, step=segment", "2 segments (2)"]
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]


def test_a_file_of_another_comparison(tmp_path: Path) -> None:
    file = tmp_path / "run.pt"
    compared(file=file)
    others = ({"ways": [{"cuts": 3}]}, {"seed": 3}, {"optimizer": lambda p: torch.optim.Adam(p, 0.1)}, {"data": other})
    for options in others:
        with pytest.raises(dni_fx.DniFxError, match="another comparison"):
            compared(file=file, **options)
    longer = compared(file=file, steps=20)
    assert longer.steps == 20 and longer.records[2].losses[:STEPS] == compared().records[2].losses
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(dni_fx.DniFxError, match="damaged"):
        compared(file=file)


def bad_metric(net: nn.Module) -> float:
    raise ValueError("no such file")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 5}, "10 or more"),
        ({"loss": "no_loss"}, "no_loss"),
        ({"optimizer": 3}, "optimizer"),
        ({"ways": [{"cuts": ["nowhere"]}]}, "nowhere"),
        ({"ways": [{"cut": 2}]}, "unexpected keyword argument 'cut'"),
        ({"metric": bad_metric}, "no such file"),
        ({"data": [(torch.zeros(4, 5), torch.zeros(4))]}, "does not run on the first batch"),
        ({"data": [(torch.zeros(4, 8), torch.zeros(4, 2))]}, "no loss is known"),
        ({"loss": lambda outputs, target: outputs.sum().detach()}, "cannot be trained"),
    ],
)
def test_wrong_arguments(options: Any, message: str) -> None:
    with pytest.raises(dni_fx.DniFxError, match=message):
        compared(**options)


@pytest.mark.filterwarnings("ignore:the predictions of")
def test_a_way_that_diverges_ends_alone() -> None:
    def wild_with_synthesizers(parameters: Any) -> torch.optim.Optimizer:
        given = list(parameters)
        return torch.optim.SGD(given, 1e30 if len(given) > len(list(model().parameters())) else 0.1)

    ways = [{"cuts": 2, "synthesizer": "linear"}, {"cuts": 3}]
    found = compared(ways=ways, optimizer=wild_with_synthesizers)
    assert found.records[2].failed.startswith("the loss is ") and not found.records[3].failed
    json.dumps(found.to_dict(), allow_nan=False)
    assert "the loss is " in str(found) and "Cut into 3 segments" in str(found)
    with pytest.raises(dni_fx.DniFxError, match="the loss is "):
        compared(loss=lambda outputs, target: outputs.sum() * float("nan"))


def test_a_layer_in_eval_mode_stays_so_and_a_metric_changes_nothing() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8).eval(), nn.Tanh(), nn.Linear(8, 3))
    plain = dni_fx.compare(net, batches, steps=STEPS, ways=[{"cuts": ["2"]}])
    scored = dni_fx.compare(
        net, batches, steps=STEPS, ways=[{"cuts": ["2"]}], metric=lambda net: float(net(torch.randn(1, 8)).sum())
    )
    assert [r.losses for r in plain.records] == [r.losses for r in scored.records]
    assert int(scored.nets[scored.records[2].name].get_submodule("1").num_batches_tracked) == 0


def test_data_that_ends_loses_nothing(tmp_path: Path) -> None:
    data = [*batches()]
    with pytest.raises(dni_fx.DniFxError, match="data="):
        compared(data=iter(data), file=tmp_path / "run.pt")
    assert compared(file=tmp_path / "run.pt").records[0].losses == compared().records[0].losses


def test_labels_and_losses_without_data() -> None:
    for options in ({"loss": "cross_entropy"}, {"ways": [{"cuts": 2, "classes": 3, "synthesizer": "linear"}]}):
        found = dni_fx.compare(model(), example_inputs=torch.zeros(4, 8), steps=10, **{"ways": [{"cuts": 2}]} | options)
        assert not found.records[2].failed
