"""A warning for synthesizers that no optimizer trains, and none where one does."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import dni_fx
from dni_fx import Training

X = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))


def made() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def cut(model: nn.Module, **options: Any) -> Any:
    return dni_fx.transform(model, X, cuts=["1", "3"], **options).train()


def train(net: nn.Module, *optimizers: torch.optim.Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        net(X).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1)


@pytest.mark.parametrize("unlock", ["backward", "none"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("how", [{}, {"foreach": True}, {"fused": True}])
def test_an_optimizer_of_the_model_alone(kind: Any, how: dict[str, bool], unlock: str) -> None:
    model = made()
    optimizer = kind(model.parameters(), 0.1, **how)
    net = cut(model, unlock=unlock)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(net, optimizer, steps=1)
    with pytest.warns(UserWarning, match=r"no optimizer trains the synthesizer cut0__1 \(and 1 more\)") as found:
        train(net, optimizer)
    assert len(found) == 1 and "optimizer=" in str(found[0].message) and "net.parameters()" in str(found[0].message)


def test_one_synthesizer_is_left_out() -> None:
    model = made()
    net = cut(model)
    optimizer = sgd([*model.parameters(), *net.dni.synthesizers["cut0__1"].parameters()])
    with pytest.warns(UserWarning, match="no optimizer trains the synthesizer cut1__3, so"):
        train(net, optimizer)


def of_all() -> None:
    net = cut(made())
    train(net, sgd(net.parameters()))


def added(**settings: Any) -> None:
    model = made()
    optimizer = sgd(model.parameters())
    train(cut(model, optimizer=optimizer, training=Training(**settings)), optimizer)


def in_one_iteration() -> None:
    net = cut(model := made())
    train(net, sgd(model.parameters()), sgd(net.dni.parameters()))


def much_later() -> None:
    net = cut(model := made())
    later = sgd(net.dni.parameters())
    train(net, sgd(model.parameters()))
    later.step()


def frozen() -> None:
    net = cut(model := made())
    net.dni.requires_grad_(False)
    train(net, sgd(model.parameters()))


def without_parameters(name: str) -> None:
    train(cut(model := made(), synthesizer=name), sgd(model.parameters()))


def of_each_segment() -> None:
    net = cut(made(), step="segment", optimizer=sgd)
    train(net, net.dni.optimizer)


def never_stepped() -> None:
    """Gradients accumulate, or a GradScaler skips the steps."""
    net = cut(model := made())
    optimizer = sgd(model.parameters())
    for _ in range(3):
        net(X).square().mean().backward()
    optimizer.zero_grad()


def of_another_net() -> None:
    other = made()
    for parameter in other.parameters():
        parameter.grad = torch.zeros_like(parameter)
    net = cut(made())
    optimizer = sgd(other.parameters())
    for _ in range(3):
        net(X).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize(
    "loop",
    [
        of_all,
        added,
        lambda: added(every=3),
        lambda: added(warmup=2),
        lambda: added(optimizer=torch.optim.Adam),
        in_one_iteration,
        much_later,
        frozen,
        lambda: without_parameters("zero"),
        lambda: without_parameters("least_squares"),
        of_each_segment,
        never_stepped,
        of_another_net,
    ],
)
def test_a_right_loop_is_silent(loop: Callable[[], None]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop()
