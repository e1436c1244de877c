"""States in a call: dicts in any order, lists of any length, nested containers, models without a graph."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from windows import DOUBLE, FRONTENDS, Cell, H, N, X

import dni_fx
from dni_fx import DniFxError

pytestmark = pytest.mark.slow


class Separate(nn.Module):
    """Two states of different sizes, in no order; the first tensor is the state itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.head = nn.Linear(2 + H, H), nn.Linear(H + 6, 6), nn.Linear(6, 1)
        self.double()

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = torch.tanh(self.one(torch.cat([x[:, 0], h], 1)))
        c = torch.tanh(self.two(torch.cat([h, c], 1)))
        return self.head(c), h, c


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("state", [{"h": 1, "c": 2}, {"c": 2, "h": 1}])
def test_the_order_in_which_states_are_named_makes_no_difference(state: dict[str, Any], frontend: str) -> None:
    h, c = torch.zeros(N, H, dtype=DOUBLE), torch.zeros(N, 6, dtype=DOUBLE)
    net = dni_fx.transform(Separate(), (X[:, :1], h, c), state=state, frontend=frontend, synthesizer="mlp").train()
    for k in range(3):
        y, h, c = net(X[:, k : k + 1], h, c)
        y.sum().backward()
    assert net.dni.metrics()["time0"]["steps"] == 2
    assert net.dni.time0.memory.handed_on.shape == (N, H + 6)
    y, h, c = net(X[:, 3:4], h, c)  # every row went on
    prediction = net.dni.time0.synthesizer.net[-1].weight
    net.zero_grad()
    y.sum().backward()
    assert prediction.grad.any()


class Keyed(nn.Module):
    """Its state is a dict; `order` is that in which it gives it."""

    def __init__(self, order: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.order = order
        self.one, self.two, self.head = nn.Linear(2 + H, H), nn.Linear(2 * H, H), nn.Linear(H, 1)
        self.double()

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        h = torch.tanh(self.one(torch.cat([x[:, 0], state["h"]], 1)))
        c = torch.tanh(self.two(torch.cat([h, state["c"]], 1)))
        return self.head(c), {key: {"h": h, "c": c}[key] for key in self.order}


def keyed(order: str) -> dict[str, Tensor]:
    return {key: torch.zeros(N, H, dtype=DOUBLE) for key in order}


@pytest.mark.parametrize("frontend", ["fx", "modules"])
@pytest.mark.parametrize("given", ["hc", "ch"])
@pytest.mark.parametrize("example", ["hc", "ch"])
@pytest.mark.parametrize("gives", ["hc", "ch"])
def test_the_keys_of_a_state_may_be_in_any_order(gives: str, example: str, given: str, frontend: str) -> None:
    net = dni_fx.transform(Keyed(gives), (X[:, :1], keyed(example)), state=True, frontend=frontend).train()
    state, h, c = keyed(given), *keyed("hc").values()
    for k in range(3):
        y, state = net(X[:, k : k + 1], {key: state[key] for key in given})
        wanted, after = Keyed(gives)(X[:, k : k + 1], {"h": h, "c": c})
        assert torch.equal(y, wanted) and all(torch.equal(state[key], after[key]) for key in "hc")
        h, c = after["h"], after["c"]
        y.sum().backward()
    assert net.dni.metrics()["time0"]["steps"] == 2  # each window was seen to go on
    assert dni_fx.check(net, (X[:, :1], keyed(given)))


def test_where_the_order_of_keys_is_fixed_another_is_refused() -> None:
    example = X[:, :1], keyed("hc")
    with pytest.raises(DniFxError, match="give the example in the order of the output"):
        dni_fx.transform(Keyed("ch"), example, state=True, frontend="export")
    net = dni_fx.transform(Keyed("hc"), example, state=True, frontend="export").train()
    with pytest.raises(TypeError, match=r"in another order than in the example, \(x, state_h, state_c\)"):
        net(X[:, :1], keyed("ch"))
    net = dni_fx.transform(Keyed("ch"), (X[:, :1], keyed("ch")), state=True, frontend="export").train()
    state = keyed("ch")
    for k in range(3):
        y, state = net(X[:, k : k + 1], state)
        y.sum().backward()
    assert net.dni.metrics()["time0"]["steps"] == 2
    with pytest.raises(DniFxError, match="holds tensors at h, c, but output 1 tensors at 0, 1"):
        dni_fx.transform(Tupled(), example, state=True)


class Tupled(Keyed):
    def __init__(self) -> None:
        super().__init__("hc")

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:  # type: ignore[override]
        y, state = super().forward(x, state)
        return y, tuple(state.values())


class Branching(nn.Module):
    """Goes by what the state holds; nested, beside what is no tensor, in a `**kwargs`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(2 + H, H), nn.Linear(2 + H, H)
        self.double()

    def forward(self, x: Tensor, **more: Any) -> dict[str, Any]:
        h, c = more["state"]["both"]
        inner = self.one if h.sum() > 0 else self.two
        h = torch.tanh(inner(torch.cat([x[:, 0], h], 1)))
        c = torch.tanh(inner(torch.cat([x[:, 0], c], 1)))
        return {"name": "branching", "y": [h, h + c], "after": {"both": (h, c)}}


def test_what_has_no_graph_has_a_cut_in_time_too() -> None:
    state: Any = {"both": (torch.zeros(N, H, dtype=DOUBLE), torch.zeros(N, H, dtype=DOUBLE))}
    example = {"example_inputs": (X[:, :1],), "example_kwargs": {"state": state}}
    net = dni_fx.transform(Branching(), **example, state={"state": "after"}).train()
    assert net.dni.plan.frontend == "modules"
    assert dni_fx.check(net, (X[:, :1],), example_kwargs={"state": state})
    for k in range(3):
        given = net(X[:, k : k + 1], state=state)
        assert given["name"] == "branching" and given["y"][0].requires_grad
        sum(y.sum() for y in given["y"]).backward()
        state = given["after"]
        assert not any(leaf.requires_grad for leaf in pytree.tree_leaves(state))
    assert net.dni.metrics()["time0"]["steps"] == 2
    with pytest.raises(DniFxError, match="begin a sequence with zeros"):
        net(X[:, :1], state={"both": state["both"][:1]})
    with pytest.raises(DniFxError, match="begin a sequence with zeros"):
        net(X[:, :1])


class Listing(nn.Module):
    """Gives a list with an entry a step, before a state of the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2 + H, H).double()

    def forward(self, x: Tensor, h: Tensor) -> tuple[list[Tensor], Tensor]:
        hs = []
        for t in range(x.shape[1]):
            h = torch.tanh(self.inner(torch.cat([x[:, t], h], 1)))
            hs.append(h)
        return hs, h


def test_the_state_is_found_after_a_list_of_any_length() -> None:
    net = dni_fx.transform(Listing(), (X[:, :2], Cell.begin()), state=True, frontend="modules").train()
    h = Cell.begin()
    for length in (1, 3, 2):
        hs, h = net(X[:, :length], h)
        assert len(hs) == length and all(one.requires_grad for one in hs) and not h.requires_grad
        sum(one.sum() for one in hs).backward()
    assert net.dni.metrics()["time0"]["steps"] == 2


@dataclass
class Boxed:
    y: Tensor


class Boxing(Keyed):
    def forward(self, x: Tensor, state: dict[str, Tensor]) -> Any:
        y, state = super().forward(x, state)
        return Boxed(y), state


def test_tensors_that_cannot_be_handed_on_are_refused() -> None:
    with pytest.raises(DniFxError, match="returns tensors in a Boxed: return them in a tuple or dict"):
        dni_fx.transform(Boxing("hc"), (X[:, :1], keyed("hc")), state=True, frontend="modules")
