"""A value that the model's code reads has changed: the graph holds if a new capture gives the same one."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from towers import Towers, inputs

import dni_fx
from dni_fx import DniFxError

X = torch.rand(4, 6)


class Reading(nn.Module):
    """Reads values: one that changes nothing, one that is in the graph, one that is in a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)
        self.unused, self.factor, self.shift = True, 2.0, 1.0

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        if self.unused:
            self.b  # noqa: B018  # the same graph in both cases
        return self.b(self.factor * h + torch.full((6,), self.shift))


def made(frontend: str) -> tuple[Any, Reading]:
    model = Reading()
    return dni_fx.transform(model, X, cuts=["a"], frontend=frontend, verify=False).train(), model


@pytest.mark.parametrize("frontend", ["fx", "export"])
def test_the_same_graph(frontend: str) -> None:
    net, model = made(frontend)
    before = net.eval()(X)
    model.unused = False
    net.train()(X).sum().backward()
    assert model.a.weight.grad is not None and torch.equal(net.eval()(X), before)
    assert net.dni_captured.again.left == 2  # captured once, not at each call


class ReadingTowers(Towers):
    """Reads a value that changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = True

    def layer(self, linear: nn.Module, h: Tensor, name: str) -> Tensor:
        if self.unused:
            self.head  # noqa: B018
        return super().layer(linear, h, name)


def test_the_same_graph_whose_nodes_run_in_another_order() -> None:
    model = ReadingTowers()
    net = dni_fx.transform(model, inputs(), cuts=2, verify=False)
    assert "in another order" in net.dni.plan.why
    before = net.eval()(*inputs())["logits"]
    model.unused = False
    assert torch.equal(net(*inputs())["logits"], before)


@pytest.mark.parametrize("frontend", ["fx", "export"])
@pytest.mark.parametrize("name", ["factor", "shift"])
def test_another_graph(name: str, frontend: str) -> None:
    net, model = made(frontend)
    setattr(model, name, 3.0)
    with pytest.raises(DniFxError, match=f"{name} was [12].0 when the model was captured and is 3.0 now"):
        net(X)


def test_a_value_that_changes_again_and_again() -> None:
    net, model = made("fx")
    for value in ("a", "b", "c"):
        model.unused = value
        net(X).sum().backward()
        net.zero_grad()
    model.unused = "d"
    with pytest.raises(DniFxError, match="unused was 'c' when the model was captured"):
        net(X)


def test_a_capture_that_fails() -> None:
    net, model = made("fx")
    model.unused, model.factor = False, nn.Linear(1, 1)  # of which there is no product
    with pytest.raises(DniFxError, match="when the model was captured"):
        net(X)


def test_copies_hold_no_example_inputs() -> None:
    net = copy.deepcopy(made("fx")[0])
    assert net.dni_captured.again is None
    net.dni_original.unused = False
    with pytest.raises(DniFxError, match="unused was True"):
        net(X)
