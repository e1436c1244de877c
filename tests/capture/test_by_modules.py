"""The front end modules: where it cuts, and what it refuses."""

import pytest
import torch
from nets import Checkpointed, Nested, Stack, Twice
from oracle import failures
from torch import Tensor

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

    with pytest.raises(DniFxError, match="bypasses it"):
        dni_fx.transform(Skip(), X, frontend="modules", cuts=["b"])


def test_a_checkpointed_block_is_not_cut_inside() -> None:
    with pytest.raises(DniFxError, match="checkpointed block"):
        dni_fx.transform(Checkpointed(), X, frontend="modules", cuts=["b"])
