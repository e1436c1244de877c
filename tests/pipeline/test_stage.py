"""The stages of a net: names, weights of several stages, gradients that come late."""

from typing import Any

import pytest
import torch
from in_stages import X, Y, made
from torch import nn

import dni_fx
from dni_fx import DniFxError
from dni_fx.pipeline import stages
from dni_fx.pipeline.targets import Targets


@pytest.mark.parametrize("name", ["linear", "labels", "tail", "unit"])
@pytest.mark.parametrize("count", [2, 4])
def test_state_dicts_join_to_that_of_the_net(name: str, count: int) -> None:
    net = made(name, 4)
    joined = {}
    for stage in stages(net, count):
        joined |= stage.state_dict()
        assert all(parameter is dict(net.named_parameters())[key] for key, parameter in stage.named_parameters())
    assert joined.keys() == net.state_dict().keys()
    net.load_state_dict(joined)


def test_segments_are_shared_out_by_their_load() -> None:
    sizes = [8, 8, 8, 64, 8]
    model = nn.Sequential(
        *(nn.Sequential(nn.Linear(a, b), nn.Tanh()) for a, b in zip([8, *sizes], sizes, strict=False))
    )
    net = dni_fx.transform(model, X[:, 0], cuts=["0", "1", "2", "3"], synthesizer="linear", verify=False)
    first, second = stages(net, 2)
    assert {name.split(".")[0] for name, _ in first.named_parameters()} == {"0", "1", "2", "3", "dni"}
    assert {name.split(".")[0] for name, _ in second.named_parameters()} == {"4"}


def test_exits_borrow_the_weights_of_a_later_stage() -> None:
    below, above = stages(made("tail"))
    (weight, bias) = below.shared
    assert (weight.names, bias.names) == ({0: "4.weight", 1: "4.weight"}, {0: "4.bias", 1: "4.bias"})
    assert weight.owners == (1,) and above.shared == below.shared


@pytest.mark.parametrize("name", ["linear", "labels", "tail", "copy", "unit"])
def test_a_stage_sends_before_it_runs_backward(name: str) -> None:
    """Also before the exit; and what it sends is what it returns."""
    stage = stages(made(name))[0]
    sent = []

    def send(values: Any) -> None:
        assert all(parameter.grad is None for parameter in stage.parameters())
        sent.append(values)

    with Targets(stage, sync=False, most=1).coming_later():
        passed, _ = stage(X, *([Y] if stage.takes_context else []), dni_send=send)
    assert any(parameter.grad is not None for parameter in stage.parameters())
    assert len(sent) == 1 and len(sent[0]) == len(passed)
    assert all(torch.equal(one, other) for one, other in zip(sent[0], passed, strict=True))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.mid, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.last.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.mid(torch.tanh(self.first(x)))
        last: torch.Tensor = self.last(torch.tanh(hidden))
        return last


def test_a_tied_weight_has_two_owners() -> None:
    net = dni_fx.transform(Tied(), X[:, 0], cuts=["mid"], synthesizer="linear", verify=False)
    (shared,) = stages(net)[0].shared
    assert shared.owners == (0, 1) and shared.names == {0: "first.weight", 1: "last.weight"}


@pytest.mark.parametrize("name", ["linear", "labels"])
def test_a_late_gradient_trains_as_one_in_time(name: str) -> None:
    """Before weights change, a prediction that is made again has the gradients of the first one."""
    found = []
    for sync in (True, False):
        torch.manual_seed(0)
        net = made(name)
        stage = stages(net)[0]
        with torch.no_grad():
            for parameter in net.dni.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        targets = Targets(stage, sync, 8)
        with targets.coming_later():
            passed, kept = stage(X, *([Y] if stage.takes_context else []))
        assert sync or not any(value.requires_grad for value in passed)
        targets.keep(0, passed, kept)
        assert stage.cut is not None
        gradient = torch.randn(X.shape, generator=torch.Generator().manual_seed(1)) / 10
        targets.learn(0, [gradient], 3)
        assert targets.metrics()["mean_age"] == 3
        found.append({key: p.grad for key, p in stage.named_parameters()})
    assert found[0].keys() == found[1].keys()
    for key, value in found[0].items():
        assert value is not None and torch.equal(value, found[1][key])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 3}, r"count=3: a net of 2 segments has 2 to 2 stages"),
        ({"count": 1}, r"count=1"),
    ],
)
def test_wrong_counts(options: dict[str, int], message: str) -> None:
    with pytest.raises(DniFxError, match=message):
        stages(made("linear"), **options)


def test_nets_that_have_no_stages() -> None:
    with pytest.raises(DniFxError, match='stages are for nets with unlock="backward"'):
        stages(made("unlock none"))
    with pytest.raises(DniFxError, match=r"expected what dni_fx\.transform returned"):
        stages(nn.Linear(2, 2))
