"""The restrictions of settings that are declared as data."""

from dataclasses import fields

import pytest
import torch
from torch import nn

import dni_fx
from dni_fx import DniFxError, Training
from dni_fx.runtime import time_horizon
from dni_fx.settings import _FOR_TIME, _NOT_WITH_A_HORIZON, check_horizon, check_scaler

EXAMPLE = torch.rand(3, 4), torch.zeros(3, 4)
OTHERS = {"discount": 0.5, "centered": False, "auxiliary": 1.0, "horizon": 2}


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        state = torch.tanh(self.layer(x + state))
        return state.sum(1), state


@pytest.mark.parametrize("feature", list(_NOT_WITH_A_HORIZON))
def test_a_horizon_excludes_features_and_says_what_to_do(feature: str) -> None:
    check_horizon(Training(), feature)
    with pytest.raises(DniFxError, match=rf"here 3 windows\) cannot be used with {feature}: .*set .*horizon=1"):
        check_horizon(Training(horizon=3), feature)


def test_a_feature_without_a_reason_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        check_horizon(Training(), "auxilliary")


def test_auxiliary_excludes_a_horizon() -> None:
    with pytest.raises(DniFxError, match="auxiliary=0 or horizon=1"):
        Training(horizon=2, auxiliary=1.0)


def test_a_scaler_excludes_a_horizon_wherever_it_is_given() -> None:
    scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(DniFxError, match="leave scaler out"):
        check_scaler(scaler, Training(horizon=2))

    net = dni_fx.transform(Cell(), EXAMPLE, state=True, training=Training(horizon=2))
    with pytest.raises(DniFxError, match="leave scaler out"):
        net.dni.scale_with(scaler)


def test_distributed_data_parallel_excludes_a_horizon(monkeypatch: pytest.MonkeyPatch) -> None:
    net = dni_fx.transform(Cell(), EXAMPLE, state=True, training=Training(horizon=2)).train()
    monkeypatch.setattr(time_horizon, "is_averaged", lambda: True)
    with pytest.raises(DniFxError, match=r"DistributedDataParallel: .*set horizon=1"):
        net(*EXAMPLE)


def test_fields_for_a_cut_in_time_are_known() -> None:
    names = [field.name for field in fields(Training)]
    assert set(_FOR_TIME) <= set(names)
    assert not Training(scale=2.0, clip=1.0, warmup=3, every=2, lr=0.1).for_time
    assert all(Training(**{name: value}).for_time for name, value in OTHERS.items())
    assert Training(horizon=2, trace=0.5).for_time
