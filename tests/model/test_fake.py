"""Models whose tensors are fake already."""

from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import dni_fx
from dni_fx.model import copied, fake_mode, placed


def layers() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.a.bias.requires_grad_(False)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


@pytest.mark.parametrize("fake", [True, False])
def test_placed(fake: bool) -> None:
    with FakeTensorMode() if fake else torch.no_grad():
        module: Any = placed(Tied(), torch.float64, "cpu")
    assert isinstance(module.a.weight, FakeTensor) == fake
    assert module.a.weight is module.b.weight and module.a.weight.requires_grad and not module.a.bias.requires_grad
    assert {name: p.dtype for name, p in module.named_parameters()} == dict.fromkeys(
        ["a.weight", "a.bias", "b.bias"], torch.float64
    )
    assert module.count.dtype == torch.int64


def test_copied_keeps_the_mode() -> None:
    with FakeTensorMode() as mode:
        module = layers()
        copy = copied(module, {})
        for ours, theirs in zip(copy.parameters(), module.parameters(), strict=True):
            assert ours is not theirs and ours.fake_mode is theirs.fake_mode is mode
        copy(torch.zeros(2, 8)).sum().backward()


def test_one_mode() -> None:
    with FakeTensorMode() as mode:
        x = torch.zeros(2, 8)
        assert fake_mode([]) is mode
    assert fake_mode([x]) is mode and fake_mode([torch.zeros(2)]) is not mode


@pytest.mark.parametrize("frontend", ["fx", "export", "modules"])
@pytest.mark.parametrize(
    "options",
    [{"synthesizer": "linear"}, {"synthesizer": "exit", "loss": "cross_entropy"}, {"classes": 3}, {"cuts": 2}],
    ids=lambda options: next(iter(options)),
)
def test_the_plan_of_a_fake_model_is_that_of_the_model(options: dict[str, Any], frontend: str) -> None:
    options = {"cuts": ["1"], "frontend": frontend} | options
    plan = dni_fx.transform(layers(), torch.zeros(4, 8), **options).dni.plan
    with FakeTensorMode():
        net = dni_fx.transform(layers(), torch.zeros(4, 8), **options).train()
        x, y = torch.zeros(4, 8), torch.zeros(4, dtype=torch.int64)
        nn.functional.cross_entropy(net(x, **{"dni_context": y} if net.dni_takes_context() else {}), y).backward()
        assert all(p.grad is not None for p in net.parameters() if p.requires_grad)
    assert net.dni.plan == plan


def test_times_of_a_fake_model() -> None:
    with FakeTensorMode(), pytest.raises(dni_fx.DniFxError, match="profile=True"):
        dni_fx.transform(layers(), torch.zeros(4, 8), cuts=["1"], profile=True)
