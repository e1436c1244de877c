"""The front end modules: where it cuts, and what it refuses."""

from collections.abc import Callable

import pytest
import torch
from nets import Checkpointed, Nested, Stack, Twice
from oracle import failures
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import dni_fx
from dni_fx.errors import DniFxError

X = torch.rand(4, 6)


def test_modules_cut_the_longest_container() -> None:
    net = dni_fx.transform(Nested(), X, frontend="modules", cuts=3)
    assert [cut.after for cut in net.dni.plan.cuts] == ["stages_0", "stages_1"]


def test_a_module_called_twice_has_a_synthesizer_an_edge() -> None:
    net = dni_fx.transform(Twice(), X, frontend="modules", cuts=["b"])
    assert len(net.dni.synthesizers) == 3
    assert failures(net, X, None) == {}


def test_what_goes_round_a_call_is_no_cut_for_modules() -> None:
    class Skip(Stack):
        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return self.d(self.c(self.b(h)) + h)

    with pytest.raises(DniFxError, match="goes round it"):
        dni_fx.transform(Skip(), X, frontend="modules", cuts=["b"])


class PassedOn(Stack):
    """A skip that went through nn.Identity, and one through an in-place activation."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.relu = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.a(x))
        h = h * 2 if h.sum() > 0 else h
        identity = self.down(h)
        h = self.c(self.act(self.b(h))) + identity
        return self.d(self.relu(h)) + h


class CountsWithoutGradient(Stack):
    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.a(x))
        with torch.no_grad():
            target = self.b(h)
        h = self.b(h) - target if h.sum() > -1e9 else h
        return self.d(self.act(self.c(h)))


class SecondOutput(Stack):
    """Gives on the second output of an operation that no cut leads through."""

    def __init__(self) -> None:
        super().__init__()
        self.widen = nn.Linear(3, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        u, v = self.act(self.a(x)).chunk(2, 1)
        u = self.act(self.widen(u)) if x.sum() > -1e9 else u
        return self.d(self.act(self.c(u))), v


@pytest.mark.parametrize("unlock", ["none", "backward"])
@pytest.mark.parametrize("make", [PassedOn, CountsWithoutGradient, SecondOutput])
def test_modules_are_cut_where_it_is_legal(make: Callable[[], nn.Module], unlock: str) -> None:
    net = dni_fx.transform(make(), X, frontend="modules", unlock=unlock)
    for _ in range(3):
        pytree.tree_leaves(net(X))[0].sum().backward()
    assert all(crossing.steps == 3 for crossing in net.dni.crossings.values())
    assert failures(net, X, None) == {}


def test_a_checkpointed_block_is_not_cut_inside() -> None:
    with pytest.raises(DniFxError, match="checkpointed block"):
        dni_fx.transform(Checkpointed(), X, frontend="modules", cuts=["b"])
