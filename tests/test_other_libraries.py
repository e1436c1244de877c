"""Loops that Accelerate and Fabric run train a rewritten net as plain ones do, and need nothing of ours."""

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from lightning import Fabric
from torch import nn

import dni_fx

pytestmark = pytest.mark.filterwarnings("ignore")  # their advice

X, Y = torch.randn(32, 8, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 3
OPTIONS: list[dict[str, Any]] = [{}, {"unlock": "none"}, {"synthesizer": "exit", "loss": "cross_entropy"}]


def made(options: dict[str, Any]) -> tuple[Any, torch.optim.Optimizer]:
    torch.manual_seed(0)
    layers = [nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)]
    net = dni_fx.transform(nn.Sequential(*layers), X[:4], cuts=["1"], **options).train()
    return net, torch.optim.Adam(net.parameters(), 1e-2)


def train(net: Any, optimizer: Any, backward: Any, *, context: bool, bf16: bool = False) -> None:
    for x, y in zip(X.chunk(4), Y.chunk(4), strict=True):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            outputs = net(x, **({"dni_context": y} if context else {}))
        backward(nn.functional.cross_entropy(outputs.float(), y))
        optimizer.step()


def check_same(net: Any, options: dict[str, Any], bf16: bool) -> None:
    other, optimizer = made(options)
    train(other, optimizer, torch.Tensor.backward, context=other.dni_takes_context(), bf16=bf16)
    found = net.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate(precision: str, options: dict[str, Any]) -> None:
    AcceleratorState._reset_state(True)
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    net, optimizer = made(options)
    wrapped, stepping = accelerator.prepare(net, optimizer)
    train(wrapped, stepping, accelerator.backward, context=net.dni_takes_context())
    AcceleratorState._reset_state(True)
    check_same(accelerator.unwrap_model(wrapped), options, precision == "bf16")


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_fabric(precision: Any, options: dict[str, Any]) -> None:
    fabric = Fabric(accelerator="cpu", precision=precision)
    net, optimizer = made(options)
    wrapped, stepping = fabric.setup(net, optimizer)
    train(wrapped, stepping, fabric.backward, context=net.dni_takes_context())
    check_same(net, options, precision != "32-true")
