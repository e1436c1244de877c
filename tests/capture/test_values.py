"""Values of buffers that forward reads as Python numbers."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import dni_fx
from dni_fx.errors import CaptureError

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))

READS: dict[str, Callable[[Tensor], float]] = {
    "item": lambda b: b.item(),
    "float": float,
    "bool": lambda b: 2.0 if b > 0.5 else 1.0,
    "numpy": lambda b: float(b.numpy()),
}


class Scaled(nn.Module):
    beta: Tensor

    def __init__(self, read: Callable[[Tensor], float], buffer: bool) -> None:
        super().__init__()
        self.read = read
        if buffer:
            self.register_buffer("beta", torch.ones(()))
        else:
            self.beta = torch.ones(())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.read(self.beta)


class Net(nn.Module):
    def __init__(self, read: Callable[[Tensor], float], buffer: bool = True) -> None:
        super().__init__()
        self.below, self.scaled = nn.Linear(8, 8), Scaled(read, buffer)
        self.middle, self.above = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.above(torch.relu(self.middle(self.scaled(torch.relu(self.below(x))))))


@pytest.mark.parametrize("buffer", [True, False])
@pytest.mark.parametrize("name", READS)
def test_a_later_value_acts(name: str, buffer: bool) -> None:
    model = Net(READS[name], buffer)
    net = dni_fx.transform(model, X, cuts=2)
    assert net.dni.plan.frontend == "fx"  # the module that reads it is whole
    model.scaled.beta.fill_(0.25)
    for train in (True, False):
        net.train(train)
        model.train(train)
        torch.testing.assert_close(net(X), model(X))


def test_the_reason_names_the_buffer() -> None:
    with pytest.raises(CaptureError, match=r"reads the value of 'beta' as a Python number"):
        dni_fx.transform(Root(), X, frontend="fx")


class Exponential(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.scaled.beta.exp())


def test_operations_on_buffers_alone_are_in_the_graph() -> None:
    model = Exponential(lambda _: 1.0)
    net = dni_fx.transform(model, X, cuts=2, frontend="fx")
    model.scaled.beta.fill_(0.25)
    torch.testing.assert_close(net(X), model(X))


class Root(Scaled):
    def __init__(self) -> None:
        super().__init__(float, False)
        self.below, self.above = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.above(torch.relu(self.below(x)) * self.read(self.beta))
