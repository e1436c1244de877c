"""Cuts at marks in the code of a model."""

import pytest
import torch
from nets import Stack
from oracle import failures
from torch import Tensor

import dni_fx
from dni_fx.errors import DniFxError

X = torch.rand(4, 6)


class Marked(Stack):
    def forward(self, x: Tensor) -> Tensor:
        with dni_fx.cut_after():
            h = self.act(self.a(x))
        for _ in range(2):
            with dni_fx.cut_after():
                h = self.act(self.b(h))
        return self.d(h)


@pytest.mark.parametrize("frontend", ["fx", "export"])
def test_marks_in_the_code(frontend: str) -> None:
    net = dni_fx.transform(Marked(), X, cuts="marked", frontend=frontend)
    names = [cut.after for cut in net.dni.plan.cuts]
    assert names == (["act", "act_1", "act_2"] if frontend == "fx" else ["tanh", "tanh_1", "tanh_2"])
    assert failures(net, X, None) == {}


def test_no_mark_is_refused() -> None:
    for frontend in ("fx", "modules"):
        with pytest.raises(DniFxError, match="holds no mark"):
            dni_fx.transform(Stack(), X, cuts="marked", frontend=frontend)
