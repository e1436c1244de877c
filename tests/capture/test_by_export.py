"""The front end export: other batch sizes, calls unlike the captured one, modes that are fixed."""

import pytest
import torch
from nets import Keywords, Moody
from torch import nn

import dni_fx
from dni_fx.errors import DniFxError

X = torch.rand(4, 6)


@pytest.mark.parametrize("frontend", ["export", "modules"])
def test_other_batch_sizes_and_the_same_result(frontend: str) -> None:
    model = Keywords()
    net = dni_fx.transform(model, (X, X), cuts=2, example_kwargs={"mask": X}, frontend=frontend)
    for rows in (1, 3, 9):
        x = torch.rand(rows, 6)
        for got in (net(x, x, mask=x), net.eval()(x, x, mask=x)):
            assert got.keys() == model(x, x).keys()
            assert got["nothing"] is None and got["three"] == 3 and got["out"].shape == (rows, 6)
        net.train()


def test_a_call_unlike_the_captured_one_is_refused() -> None:
    net = dni_fx.transform(Keywords(), (X,), cuts=2, example_kwargs={"mask": X}, frontend="export")
    net(X, mask=X)
    net(x=X, mask=X)
    for args, kwargs in (((X,), {}), ((X, X), {"mask": X}), ((X,), {"mask": None})):
        with pytest.raises(TypeError, match=r"argument '(mask|rest)' was"):
            net(*args, **kwargs)
    with pytest.raises(TypeError, match="size 3 along axis 0, not 4, as another argument has it"):
        net(X, mask=X[:3])
    with pytest.raises(TypeError, match="size 5 along axis 1, not 6"):
        net(X[:, :5], mask=X[:, :5])


def test_a_mode_that_export_has_fixed_is_not_changed_in_silence() -> None:
    net = dni_fx.transform(Moody(), X, cuts=2, frontend="export")
    net.train()
    assert not net.norm.training
    net(X)
    net.noise.eval()
    with pytest.raises(DniFxError, match="noise is in eval mode"):
        net(X)


class Decides(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        y: torch.Tensor = self.b(h.tanh() if h.sum() > 0 else h)
        return y


class ReadsMemory(Decides):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.b(self.a(x).tanh()) * (x.data_ptr() > 0)
        return y


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Decides(), r"Could not guard on data-dependent expression Eq\(u\d+, 1\)"),
        (ReadsMemory(), r"Cannot access data pointer of Tensor \(e\.g\. FakeTensor, FunctionalTensor\)\."),
    ],
)
def test_an_error_of_export_is_one_line_without_advice(model: nn.Module, words: str) -> None:
    with pytest.raises(DniFxError, match=rf"^torch\.export does not take it: {words}$"):
        dni_fx.transform(model, X, frontend="export")
