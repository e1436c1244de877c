"""Hooks that a model has before its capture: they run, or a front end refuses the model."""

from typing import Any

import pytest
import torch
from torch import nn

import dni_fx
from dni_fx.errors import CaptureError

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")
X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


def made() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 8), nn.Linear(8, 4))


@pytest.mark.parametrize("name", ["1", "0.0"])
def test_a_backward_hook_of_a_child_runs(name: str) -> None:
    model, calls = made(), []
    model.get_submodule(name).register_full_backward_hook(lambda *_: calls.append(1))
    net = dni_fx.transform(model, X, cuts=2, frontend="fx").train()
    calls.clear()
    net(X).sum().backward()
    assert calls == [1]


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook"])
def test_hooks_of_the_model_itself(kind: str) -> None:
    model = made()
    getattr(model, f"register_{kind}")(lambda *_: None)
    with pytest.raises(CaptureError, match="Sequential has hooks, which a trace loses"):
        dni_fx.transform(model, X, cuts=2, frontend="fx")


def test_backward_hooks_under_export() -> None:
    model = made()
    model[0].register_full_backward_hook(lambda *_: None)
    with pytest.raises(CaptureError, match=r"0 has backward hooks, which torch.export loses"):
        dni_fx.transform(model, X, cuts=2, frontend="export")
