"""Optimizers of synthesizers: a learning rate of their own, an optimizer of their own."""

import copy
from typing import Any

import pytest
import torch
from nets import three_layers
from one_cut import X, synthesizer_of
from torch import nn

import dni_fx
from dni_fx.settings import Training


def test_a_learning_rate_of_their_own() -> None:
    model = three_layers()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    dni_fx.transform(model, X, cuts=2, optimizer=optimizer, training=Training(lr=5.0))
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 5e-3]


def test_an_optimizer_of_their_own() -> None:
    model = three_layers()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    made = []

    def factory(parameters: Any) -> torch.optim.Optimizer:
        made.append(torch.optim.Adam(parameters, 1e-2))
        return made[0]

    net = dni_fx.transform(model, X, cuts=2, optimizer=optimizer, training=Training(optimizer=factory))
    before = copy.deepcopy(synthesizer_of(net).state_dict())
    optimizer.zero_grad()
    net(X).square().mean().backward()
    optimizer.step()
    assert len(optimizer.param_groups) == 1 and len(made) == 1
    assert any(not torch.equal(v, before[k]) for k, v in synthesizer_of(net).state_dict().items())
    assert all(p.grad is None for p in net.dni.parameters())  # they do not add up


def test_zero_grad_reaches_an_optimizer_of_their_own() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    net = dni_fx.transform(
        model, torch.rand(4, 6), cuts=["1"], optimizer=optimizer, training=Training(optimizer=torch.optim.Adam)
    ).train()
    net(torch.rand(4, 6)).sum().backward()  # a batch that is skipped
    optimizer.zero_grad()
    assert all(p.grad is None for p in net.dni.parameters())
    assert copy.deepcopy(net).dni.optimizer is None
    assert isinstance(net.dni.optimizer, torch.optim.Adam)


@pytest.mark.parametrize("options", [{"unlock": "none", "mix": 1.0}, {"training": Training(warmup=9)}])
def test_clipping_apart_is_that_of_backpropagation_where_predictions_are_true(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    x = torch.rand(16, 8)
    net: Any = dni_fx.transform(copy.deepcopy(model), x, cuts=["1", "3"], synthesizer="mlp", **options).train()
    norms = []
    for module, own in (
        (model, [*model.parameters()]),
        (net, [p for n, p in net.named_parameters() if "dni." not in n]),
    ):
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            (module(x).square().sum()).backward()
            norms.append(nn.utils.clip_grad_norm_(own, 0.5))
            if module is net:
                nn.utils.clip_grad_norm_(net.dni.parameters(), 0.5)
            optimizer.step()
    assert min(norms) > 0.5
    torch.testing.assert_close(norms[:3], norms[3:])
    for (name, p), its in zip(model.named_parameters(), net.parameters(), strict=False):
        torch.testing.assert_close(p, its, msg=name)
