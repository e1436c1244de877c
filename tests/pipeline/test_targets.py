"""Gradients that come too late are dropped, and counted; a state that goes from call to call is refused."""

import pytest
import torch
from in_stages import X, Y, made
from nets import NormedResidual
from torch import nn

import dni_fx
from dni_fx.pipeline import stages
from dni_fx.pipeline.targets import Targets


def test_a_limit_of_the_age() -> None:
    stage = stages(made("linear"))[0]
    targets = Targets(stage, False, 2)
    for number in range(3):
        with targets.coming_later():
            passed, kept = stage(X)
        targets.keep(number, passed, kept)
    for number in range(3):
        targets.learn(number, [torch.zeros_like(X)], 3)
    assert targets.metrics() == {"gradients": 2, "too_old": 1, "mean_age": 1.5, "max_age": 2}


@pytest.mark.parametrize("name", ["linear", "unit"])
def test_only_in_a_pipeline_the_gradients_come_later(name: str) -> None:
    """After a run, the net trains its synthesizers and exits in one process as before."""
    net = made(name)
    stage = stages(net)[0]
    assert stage.cut is not None
    (crossing,), exit = stage.cut.crossings, stage.cut.exit
    with Targets(stage, False, 2).coming_later():
        assert crossing.learns is (name == "unit") and (exit is None or exit.trains_at_once)
    assert crossing.learns and not (exit is not None and exit.trains_at_once)


def test_an_exit_wants_no_gradients() -> None:
    stage = stages(made("unit"))[0]
    assert not Targets(stage, False, 2).wanted and Targets(stage, True, 2).wanted
    assert not Targets(stages(made("linear"))[1], True, 2).wanted


@pytest.mark.parametrize(
    "options", ["", "weights='copy'", "weights='readonly'", "frozen_units=True", "units=0", "units=2", "units='all'"]
)
def test_without_gradients_from_above_a_stage_trains_all_of_its_weights(options: str) -> None:
    """Also those of the units above the cut, which the segment above trains in one process."""
    torch.manual_seed(0)
    model = nn.Sequential(*(NormedResidual() for _ in range(4)), nn.Linear(8, 3))
    exit = {"synthesizer": f"exit({options})" if options else "auto", "loss": "cross_entropy"}
    net = dni_fx.transform(model, X[:2], cuts=["0"], verify=False, **exit).train()
    below, above = stages(net)
    with Targets(below, False, 2).coming_later():
        below(X, Y)
    borrowed = {weight.names[0] for weight in below.shared}
    own = {key: p for key, p in below.named_parameters() if key not in borrowed and not key.startswith("dni.")}
    assert "0.inner.weight" in own
    assert set(own) | {key for key, _ in above.named_parameters()} == dict(model.named_parameters()).keys()
    for key, parameter in own.items():
        assert parameter.grad is not None and parameter.grad.any(), key
