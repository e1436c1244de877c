"""Verification: no trace that is another network gets through."""

from typing import Any

import pytest
import torch
from nets import Base
from torch import Tensor, nn

import dni_fx
from dni_fx.capture import capture
from dni_fx.errors import CaptureError
from dni_fx.model import to_inputs

torch.manual_seed(0)  # unlucky weights let no gradient through, and a wrong one would not be seen
X = torch.rand(4, 6)


class NoGradBlock(Base):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.a(x)
        return self.above(h)


class Autocast(Base):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.above(self.a(x))


class WrittenBuffer(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.seen + 1
        return self.above(self.a(x))


class Counter(Base):
    """A buffer that is assigned to and used."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + x.detach().mean(0)
        return self.above(self.a(x - self.mean))


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return -g


class CustomFunction(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.above(Reversed.apply(self.a(x)))  # type: ignore[no-untyped-call]


class BakedBatch(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.above(self.a(x)).view(4, -1)


class BakedFromLen(Base):
    """A size that is right in eager mode, and that the trace would bake in."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.above(self.a(x)) + torch.zeros([int(n) for n in getattr(x, "shape", (4, 6))])


class Random(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.above(self.a(x)) * (1 + torch.rand(1))


class EvalOnly(Base):
    """Another network in eval mode, in a way that the words do not give away."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.above(h * 2 if vars(self)["train" + "ing"] else h)


WRONG: list[tuple[nn.Module, str]] = [
    (NoGradBlock(), "gradients in train mode"),
    (Autocast(), "outputs in train mode"),
    (WrittenBuffer(), "buffers in train mode"),
    (Counter(), ""),
    (CustomFunction(), "gradients in train mode"),
    (Random(), "outputs in train mode"),
    (EvalOnly(), "outputs in eval mode"),
    (BakedFromLen(), ""),
]


@pytest.mark.parametrize(("model", "check"), WRONG, ids=[type(m).__name__ for m, _ in WRONG])
def test_a_trace_that_is_another_network_is_refused(model: nn.Module, check: str) -> None:
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CaptureError) as caught:
        dni_fx.transform(model, X, frontend="fx")
    assert check in str(caught.value)
    assert "submodule" in str(caught.value)
    assert "\n" not in str(caught.value)
    for name, value in model.state_dict().items():
        assert type(value) is Tensor, name
        assert torch.equal(value, before[name]), name


def test_a_batch_size_that_the_model_itself_bakes_in_is_accepted() -> None:
    net = dni_fx.transform(BakedBatch(), X, cuts=2)
    assert net(X).shape == (4, 6)


def rows(x: Any) -> int:
    return len(x) if type(x) is Tensor else 4


class BakedShape(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.above(self.a(x)).reshape(rows(x), -1)


class BakedFactor(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.above(self.a(x)) / rows(x)


@pytest.mark.parametrize(
    ("model", "text"), [(BakedShape(), "fails for another batch size"), (BakedFactor(), "differ from")]
)
def test_a_batch_size_that_the_trace_bakes_in_is_refused(model: nn.Module, text: str) -> None:
    with pytest.raises(CaptureError, match=text) as caught:
        dni_fx.transform(model, X, frontend="fx")
    assert "batch size" in str(caught.value)


class OneLayer(nn.Module):
    """A model without a legal cut, of which a trace by fx is another network."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        with torch.no_grad():
            scale = 2 * h
        return h * scale


def test_a_graph_without_a_legal_cut_is_compared_before_it_is_taken() -> None:
    found = capture(OneLayer(), to_inputs(X, None))
    assert found.frontend == "export"
    assert found.tried[0].startswith("fx: gradients in train mode differ")
