"""`Training(every=k)`: the step counter is part of a state_dict, and a resumed run trains at the same steps."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dni_fx
from dni_fx import Training

X = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))


def cut(every: int = 3, **options: Any) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    return dni_fx.transform(model, X, cuts=["1"], training=Training(every=every), **options).train()


def train(net: Any, steps: int) -> list[bool]:
    """Whether the synthesizer got gradients, by step."""
    found = []
    for _ in range(steps):
        net.zero_grad()
        net(X).square().mean().backward()
        found.append(any(p.grad is not None for p in net.dni.parameters()))
    return found


@pytest.mark.parametrize("unlock", ["backward", "none"])
def test_a_resumed_run_trains_at_the_same_steps(unlock: str) -> None:
    net = cut(unlock=unlock)
    assert train(net, 4) == [True, False, False, True]
    stored = copy.deepcopy(net.state_dict())
    again = cut(unlock=unlock)
    again.load_state_dict(stored)
    assert train(again, 5) == train(net, 5) == [False, False, True, False, False]


def test_a_state_of_an_older_version() -> None:
    net = cut()
    train(net, 2)
    older = {name: value for name, value in net.state_dict().items() if not name.endswith(".steps")}
    assert len(older) == len(net.state_dict()) - 1
    again = cut()
    again.load_state_dict(older)
    assert train(again, 2) == [True, False]
    with pytest.raises(RuntimeError, match="Unexpected key"):
        again.load_state_dict(older | {"dni.strange": torch.zeros(1)})


def test_where_it_does_not_matter_no_key_is_added() -> None:
    net = cut(every=1)
    assert not [name for name in net.state_dict() if name.endswith("steps")]
    other = cut()
    train(other, 2)
    net.load_state_dict(other.state_dict())
    assert net.dni.metrics()["cut0__1"]["steps"] == 2


def test_in_time() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(12, 4)

        def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.tanh(self.inner(torch.cat([x, h], 1)))
            return h.sum(1), h

    net: Any = dni_fx.transform(
        Recurrent(), (X, torch.zeros(4, 4)), state=True, synthesizer="mlp", training=Training(every=2)
    )
    assert "dni.time0.steps" in net.state_dict()
