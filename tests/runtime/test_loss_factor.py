"""The factor of the loss, measured at the output of the net."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dni_fx

torch.manual_seed(0)
X, Y = torch.randn(6, 5, 8), torch.randint(0, 3, (6, 5))


class Tokens(nn.Module):
    def __init__(self, classes_last: bool) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.classes_last = classes_last

    def forward(self, x: Tensor) -> Tensor:
        y = self.o(torch.tanh(self.b(torch.tanh(self.a(x)))))
        return y if self.classes_last else y.transpose(1, 2)


def factor_after(factor: float, classes_last: bool = True, **options: Any) -> float | None:
    net = dni_fx.transform(Tokens(classes_last), X, classes=3, cuts=["tanh"], **options).train()
    y = net(X, dni_context=Y)
    loss = nn.functional.cross_entropy(y.flatten(0, 1) if classes_last else y, Y.flatten() if classes_last else Y)
    (factor * loss).backward()
    measured: float | None = net.dni.segments[0].accumulation.factor
    return measured


@pytest.mark.parametrize("classes_last", [True, False])
@pytest.mark.parametrize("unlock", ["backward", "none"])
@pytest.mark.parametrize("factor", [1.0, 0.25, 3.0])
def test_cross_entropy_over_positions(factor: float, unlock: str, classes_last: bool) -> None:
    assert factor_after(factor, classes_last, unlock=unlock) == pytest.approx(factor, rel=1e-4)


def test_another_loss_is_not_measured() -> None:
    net = dni_fx.transform(Tokens(True), X, classes=3, cuts=["tanh"]).train()
    for _ in range(4):
        net.zero_grad()
        net(X, dni_context=Y).square().mean().backward()
    assert net.dni.segments[0].accumulation.factor is None and net.dni.likely_loss is None


def test_a_given_loss_is_measured() -> None:
    def loss(output: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, labels, label_smoothing=0.2)

    net = dni_fx.transform(
        nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)), X[:, 0], classes=3, cuts=["1"], loss=loss
    ).train()
    (loss(net(X[:, 0], dni_context=Y[:, 0]), Y[:, 0]) / 2).backward()
    assert net.dni.segments[0].accumulation.factor == pytest.approx(0.5, rel=1e-4)
