"""A warning for an optimizer of parameters that were replaced, and none where the new ones are trained or frozen."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations

import dni_fx

X = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1)


def cut(unlock: str = "backward") -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    return dni_fx.transform(model, X, cuts=["1", "3"], unlock=unlock).train()


def train(net: Any, *optimizers: torch.optim.Optimizer, steps: int = 2) -> None:
    for _ in range(steps):
        net.zero_grad()
        net(X).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()


def assigned(net: Any) -> None:
    net.load_state_dict({k: v.clone() for k, v in net.state_dict().items()}, assign=True)


def emptied(net: Any) -> None:
    net.to("meta").to_empty(device="cpu")
    for parameter in net.parameters():
        nn.init.constant_(parameter, 0.1)


def weight_norm(net: Any) -> None:
    parametrizations.weight_norm(net.get_submodule("0"))


def another_layer(net: Any) -> None:
    net.set_submodule("0", nn.Linear(8, 8))


REPLACE = [assigned, emptied, weight_norm, another_layer]


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("unlock", ["backward", "none"])
@pytest.mark.parametrize("replace", REPLACE)
def test_an_optimizer_of_old_parameters_warns_once(replace: Callable[[Any], None], unlock: str, begun: bool) -> None:
    net = cut(unlock)
    optimizer = sgd(net.parameters())
    if begun:
        train(net, optimizer)
    replace(net)
    with pytest.warns(UserWarning, match=r"no optimizer trains parameter '0\..*from net.parameters\(\)") as found:
        train(net, optimizer, steps=3)
    assert len(found) == 1


@pytest.mark.parametrize("replace", REPLACE)
def test_a_new_optimizer_is_silent(replace: Callable[[Any], None]) -> None:
    net = cut()
    optimizer = sgd(net.parameters())
    train(net, optimizer)
    replace(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(net, optimizer, sgd(net.parameters()))


def frozen(net: Any) -> None:
    net.set_submodule("0", nn.Linear(8, 8).requires_grad_(False))


def removed(net: Any) -> None:
    net.set_submodule("0", nn.Identity())


@pytest.mark.parametrize("replace", [frozen, removed])
def test_nothing_new_to_train_is_silent(replace: Callable[[Any], None]) -> None:
    net = cut()
    optimizer = sgd(net.parameters())
    replace(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(net, optimizer)


def test_parameters_of_one_call_are_silent() -> None:
    net = cut("none")
    optimizer = sgd(net.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            shifted = {name: nn.Parameter(p + 0.01) for name, p in net.named_parameters()}
            functional_call(net, shifted, (X,)).square().mean().backward()
            optimizer.step()
            train(net, optimizer, steps=1)
