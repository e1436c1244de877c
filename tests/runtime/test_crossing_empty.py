"""Batches of no rows: a step on one changes nothing, and those after it train as before."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dni_fx
from dni_fx import Training
from dni_fx.runtime.module import DecoupledModule

X = torch.rand(6, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6) % 3


def net_of(size: int, unlock: str, **options: Any) -> DecoupledModule:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3))
    return dni_fx.transform(model, X, cuts=2, unlock=unlock, **options)


def trained(net: DecoupledModule, sizes: tuple[int, ...], labelled: bool) -> dict[str, Tensor]:
    """All parameters and buffers after a step on each of these batches."""
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for size in sizes:
        optimizer.zero_grad()
        context = {"dni_context": LABELS[:size]} if labelled else {}
        net(X[:size], **context).square().sum().backward()
        optimizer.step()
    return {name: value for name, value in net.state_dict().items() if isinstance(value, Tensor)}


@pytest.mark.parametrize("unlock", ["backward", "none"])
@pytest.mark.parametrize("synthesizer", ["linear", "mlp", "least_squares", "zero", "gru", "guided_head"])
def test_a_step_on_an_empty_batch_changes_nothing(synthesizer: str, unlock: str) -> None:
    labelled = synthesizer == "guided_head"
    options = {"classes": 3, "loss": "cross_entropy"} if labelled else {}
    found = [
        trained(net_of(6, unlock, synthesizer=synthesizer, **options), sizes, labelled)
        for sizes in ((6, 6, 6), (6, 0, 6, 0, 6))
    ]
    same = {name: value for name, value in found[0].items() if not name.endswith(("measured", "skipped"))}
    if synthesizer != "gru":  # a state of other rows begins anew, so that a gru predicts other gradients afterwards
        for name, value in same.items():
            torch.testing.assert_close(found[1][name], value, equal_nan=True, msg=name)
    assert all(value.isfinite().all() for name, value in found[1].items() if not name.endswith("measured"))


@pytest.mark.parametrize("unlock", ["backward", "none"])
@pytest.mark.parametrize("training", [Training(scale="rms"), Training(clip=1.0), Training(warmup=2)], ids=str)
def test_settings_of_training_on_an_empty_batch(training: Training, unlock: str) -> None:
    found = trained(net_of(6, unlock, synthesizer="linear", training=training), (6, 0, 6, 6), labelled=False)
    assert all(value.isfinite().all() for name, value in found.items() if not name.endswith("measured"))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = self.cell(x, h)
        return self.head(h), h


@pytest.mark.parametrize("options", [{}, {"horizon": 2}, {"auxiliary": 1.0}], ids=str)
@pytest.mark.parametrize("unlock", ["backward", "none"])
def test_an_empty_window(options: dict[str, Any], unlock: str) -> None:
    torch.manual_seed(0)
    arguments = (X, torch.zeros(6, 5))
    net = dni_fx.transform(Recurrent(), arguments, state=True, unlock=unlock, training=Training(**options))
    h = torch.zeros(6, 5)
    for size in (6, 6, 0, 0, 6, 6, 6):
        net.zero_grad()
        h = h if len(h) == size else torch.zeros(size, 5)
        y, h = net(X[:size], h)
        y.square().sum().backward()
        assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)
