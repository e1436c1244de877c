"""Copies of a net with step="segment": a copy in memory has an optimizer of its own; a pickle without one warns."""

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import dni_fx
from dni_fx import SegmentOptimizer, Training

X = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1, momentum=0.9)


def stepping(factory: Any = momentum, **options: Any) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    net = dni_fx.transform(model, X, cuts=["1", "3"], step="segment", optimizer=factory, **options).train()
    train(net, 2)
    return net


def train(net: Any, steps: int, optimizer: Any = None) -> None:
    optimizer = optimizer or net.dni.optimizer
    for _ in range(steps):
        if optimizer is not None:
            optimizer.zero_grad()
        net(X).square().mean().backward()
        if optimizer is not None:
            optimizer.step()


@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate": 2}, {"training": Training(optimizer=momentum)}, {"training": Training(lr=0.5, every=2)}],
)
def test_a_copy_goes_on_as_the_original_does(options: dict[str, Any]) -> None:
    net = stepping(**options)
    net.dni.optimizer.param_groups[0]["lr"] = 0.05
    other = copy.deepcopy(net)
    assert isinstance(other.dni.optimizer, SegmentOptimizer)
    frozen = [p.detach().clone() for p in other.parameters()]
    train(net, 4)
    assert all(torch.equal(p, q) for p, q in zip(frozen, other.parameters(), strict=True))
    train(other, 4)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), other.parameters(), strict=True))
    assert not any(torch.equal(p, q) for p, q in zip(frozen, other.parameters(), strict=True))


def test_a_copy_of_net_and_optimizer_fits_together() -> None:
    net = stepping()
    other, optimizer = copy.deepcopy((net, net.dni.optimizer))
    assert optimizer is other.dni.optimizer and optimizer is not net.dni.optimizer


def test_a_copy_in_the_middle_of_accumulation_begins_a_new_one() -> None:
    """A copied parameter has no gradient."""
    net = stepping(accumulate=2)
    train(net, 1)
    other = copy.deepcopy(net)
    stepped: list[None] = []
    other.dni.optimizer.optimizers[0][0].register_step_post_hook(lambda *_: stepped.append(None))
    train(other, 1)
    assert not stepped
    train(other, 1)
    assert stepped == [None]


def test_a_scaled_loss() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    net: Any = dni_fx.transform(model, X, cuts=["1"], step="segment", optimizer=momentum, scaler=scaler).train()
    other: Any = copy.deepcopy(net)
    assert other.dni.optimizer.scaler is scaler
    for one in (net, other):
        for _ in range(2):
            scaler.scale(one(X).square().mean()).backward()
            scaler.update()
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), other.parameters(), strict=True))


def once() -> Any:
    """A function that makes optimizers for one net only."""
    left = [momentum] * 3

    def factory(parameters: Any) -> torch.optim.Optimizer:
        return left.pop()(parameters)

    return factory


def pickled(net: Any) -> Any:
    return pickle.loads(pickle.dumps(net))


@pytest.mark.parametrize(
    "copy_of",
    [
        lambda: pickled(stepping()),
        lambda: pickled(pickled(stepping())),
        lambda: copy.deepcopy(pickled(stepping())),
        lambda: copy.deepcopy(stepping(once())),
    ],
)
def test_a_copy_without_an_optimizer_warns_once(copy_of: Any) -> None:
    net = copy_of()
    assert net.dni.optimizer is None
    with pytest.warns(UserWarning, match="no optimizer trains this copy of a net with step=") as found:
        train(net, 2)
    assert len(found) == 1 and "dni_fx.SegmentOptimizer(net" in str(found[0].message)


def test_a_copy_with_an_optimizer_or_that_is_not_trained_is_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = pickled(stepping())
        train(net, 2, SegmentOptimizer(net, momentum))
        net = pickled(stepping())
        train(net, 2, momentum(net.parameters()))
        net = pickled(stepping()).eval()
        net(X).sum().backward()
        net.train()
        with torch.no_grad():
            net(X)


def test_an_average_of_weights_is_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = stepping()
        average = torch.optim.swa_utils.AveragedModel(net)
        train(net, 2)
        average.update_parameters(net)
        torch.optim.swa_utils.update_bn([X], average)
        assert average.eval()(X).shape == (4, 3)


def test_a_copy_of_a_net_in_a_loop_has_no_optimizer() -> None:
    net = dni_fx.transform(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)), X, cuts=["1"]).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for other in (copy.deepcopy(net), pickled(net)):
            assert other.dni.optimizer is None
            train(other, 2, momentum(other.parameters()))
