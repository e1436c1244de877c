"""Small models that break tracers: each is taken and right, or refused for a reason that is true."""

import dataclasses
import functools
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from nets import Stack, TiedWeights, Twice
from oracle import loss_of
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils import _pytree as pytree

import dni_fx
from dni_fx.errors import CaptureError

torch.manual_seed(0)
X = torch.rand(4, 6)


class Branches(Stack):
    def middle(self, h: Tensor) -> Tensor:
        return h * 2 if h.mean().item() > 0 else -h


class LoopsOverRows(Stack):
    def middle(self, h: Tensor) -> Tensor:
        return torch.stack([row * (i + 1) for i, row in enumerate(h)])


class ReturnsDict(Stack):
    def forward(self, x: Tensor) -> dict[str, Any]:
        h = self.act(self.b(self.act(self.a(x))))
        return {"y": self.d(self.act(self.c(h))), "more": [h, {"shape": h.shape[1]}]}


@dataclasses.dataclass
class Result:
    y: Tensor
    hidden: Tensor


class ReturnsDataclass(Stack):
    def forward(self, x: Tensor) -> Result:
        h = self.act(self.b(self.act(self.a(x))))
        return Result(self.d(self.act(self.c(h))), h)


class Pair(NamedTuple):
    y: Tensor
    hidden: Tensor


class ReturnsNamedTuple(Stack):
    def forward(self, x: Tensor) -> Pair:
        h = self.act(self.b(self.act(self.a(x))))
        return Pair(self.d(self.act(self.c(h))), h)


class WritesToInput(Stack):
    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        return super().forward(x)


class WritesToSlice(Stack):
    def middle(self, h: Tensor) -> Tensor:
        h = h.clone()
        h[:, 0] = 0
        return h


class Dispatches(Stack):
    def __init__(self) -> None:
        super().__init__()
        self.choices = nn.ModuleDict({"x": nn.Linear(6, 6), "y": nn.Linear(6, 6)})
        self.choice = "y"

    def middle(self, h: Tensor) -> Tensor:
        return self.choices[self.choice](h)


class Hooked(Stack):
    def __init__(self) -> None:
        super().__init__()
        self.b.register_forward_hook(lambda module, args, output: output * 2)


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class CustomFunction(Stack):
    def middle(self, h: Tensor) -> Tensor:
        return Straight.apply(3 * h)  # type: ignore[no-any-return, no-untyped-call]


class PythonRandom(Stack):
    def middle(self, h: Tensor) -> Tensor:
        return h * (1 + random.random())


class TorchRandom(Stack):
    def middle(self, h: Tensor) -> Tensor:
        return h * torch.rand(6) if torch.rand(()) > -1 else h


class ListOfTensors(Stack):
    def __init__(self) -> None:
        super().__init__()
        self.scales = [torch.full((6,), 1.0 + i) for i in range(3)]

    def middle(self, h: Tensor) -> Tensor:
        for scale in self.scales:
            h = h * scale
        return h


class CountsInBuffer(Stack):
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def middle(self, h: Tensor) -> Tensor:
        self.seen += 1
        return h / self.seen


class CountsInPython(Stack):
    calls = 0

    def middle(self, h: Tensor) -> Tensor:
        self.calls += 1
        return h * self.calls


CALLS = {"n": 0}


class CountsInGlobal(Stack):
    """The count changes nothing."""

    def middle(self, h: Tensor) -> Tensor:
        CALLS["n"] += 1
        return h


class Closes(Stack):
    def __init__(self) -> None:
        super().__init__()
        scale = nn.Parameter(torch.full((6,), 0.5))
        self.scale = scale
        self.scaled: Callable[[Tensor], Tensor] = lambda h: h * scale

    def middle(self, h: Tensor) -> Tensor:
        def nested(h: Tensor, depth: int = 2) -> Tensor:
            return self.scaled(h if depth == 0 else nested(h, depth - 1))

        return nested(h)


class Partial(Stack):
    def __init__(self) -> None:
        super().__init__()
        self.scaled = functools.partial(torch.mul, other=torch.tensor(0.5))

    def middle(self, h: Tensor) -> Tensor:
        return self.scaled(h)


def weight_normed() -> Stack:
    model = Stack()
    parametrizations.weight_norm(model.b)
    parametrizations.spectral_norm(model.c)
    return model


class Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w + w.T


def parametrized() -> Stack:
    model = Stack()
    parametrize.register_parametrization(model.b, "weight", Symmetric())
    return model


def old_norms() -> Stack:
    model = Stack()
    torch.nn.utils.spectral_norm(model.b)
    return model


class Rearranges(Stack):
    def middle(self, h: Tensor) -> Tensor:
        n, f = h.shape
        return h.reshape(n, 2, f // 2).transpose(1, 2).reshape(n, f) + h.size(-1) + len(h.shape)


class WhereOnShape(Stack):
    def middle(self, h: Tensor) -> Tensor:
        return torch.where(torch.arange(h.shape[1]) < h.shape[1] // 2, h, -h)


class ByType(Stack):
    def middle(self, h: Tensor) -> Tensor:
        return h * 2 if isinstance(h, Tensor) else h


class NoGrad(Stack):
    def middle(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            shift = self.b(h)
        return h + shift


class Autocast(Stack):
    def middle(self, h: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            h = self.b(h)
        return h.float()


class Tries(Stack):
    def middle(self, h: Tensor) -> Tensor:
        try:
            return h * float(h.sum())
        except (TypeError, ValueError):
            return h


class Remembers(Stack):
    last: Tensor | None = None

    def middle(self, h: Tensor) -> Tensor:
        self.last = h
        return h


class DefinesModule(Stack):
    def middle(self, h: Tensor) -> Tensor:
        class Doubles(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x * 2

        return Doubles()(h)


class Packs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.below, self.lstm, self.above = nn.Linear(6, 5), nn.LSTM(5, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        lengths = [3] + [2] * (len(x) - 1)
        packed = pack_padded_sequence(torch.relu(self.below(x)), lengths, batch_first=True)
        return self.above(pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0])


class Nests(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.below, self.middle, self.above = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.nested.as_nested_tensor([x[:2], x[2:]], layout=torch.jagged)
        return self.above(torch.cat(torch.relu(self.middle(torch.relu(self.below(rows)))).unbind()))


class Complex(Stack):
    def middle(self, h: Tensor) -> Tensor:
        z = torch.complex(h, self.b(h))
        return (z * z.conj()).real + torch.fft.rfft(h, n=10).abs()


class Slices(Stack):
    """A value is used again after its view was written."""

    def middle(self, h: Tensor) -> Tensor:
        h = h * 1.0
        view = h.view(-1, 2, 3)
        view[:, 0].add_(view[:, 1])
        return h


class UsesTwice(Stack):
    def middle(self, h: Tensor) -> Tensor:
        return F.linear(h, self.b.weight.t()) + F.linear(h, self.a.weight, self.b.bias)


class Warms(Stack):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = F.dropout(x, 0.3)
        return super().forward(x)


class Recurses(nn.Module):
    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.layer, self.act = nn.Linear(6, 6), nn.Tanh()
        self.inner = Recurses(depth - 1) if depth else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.layer(x))
        return h if self.inner is None else self.inner(h)


MODELS: list[tuple[Callable[[], nn.Module], str]] = [
    (Branches, "modules"),
    (LoopsOverRows, "modules"),
    (ReturnsDict, "fx"),
    (ReturnsDataclass, "fx"),
    (ReturnsNamedTuple, "fx"),
    (WritesToInput, "fx"),
    (WritesToSlice, "export"),
    (Dispatches, "fx"),
    (Hooked, "fx"),
    (CustomFunction, "modules"),
    (PythonRandom, "modules"),
    (TorchRandom, "modules"),
    (ListOfTensors, "fx"),
    (CountsInBuffer, "export"),
    (CountsInPython, "modules"),
    (CountsInGlobal, "fx"),
    (Closes, "fx"),
    (Partial, "fx"),
    (weight_normed, "fx"),
    (parametrized, "fx"),
    (old_norms, "modules"),
    (Rearranges, "export"),
    (WhereOnShape, "fx"),
    (ByType, "export"),
    (NoGrad, "export"),
    (Autocast, "export"),
    (Tries, "modules"),
    (Remembers, "modules"),
    (DefinesModule, "export"),
    (Packs, "modules"),
    (Complex, "fx"),
    (Slices, "fx"),
    (UsesTwice, "fx"),
    (TiedWeights, "fx"),
    (Twice, "fx"),
    (Warms, "export"),
    (Recurses, "fx"),
]


REFUSED: list[tuple[Callable[[], nn.Module], str]] = [
    (Nests, r"fx: .*test_frontends_breakers\.py:\d+: .*as_nested_tensor.* / modules: the model does not run while"),
]


@pytest.mark.parametrize(("make", "reason"), REFUSED, ids=[make.__name__ for make, _ in REFUSED])
def test_a_model_that_no_front_end_takes(make: Callable[[], nn.Module], reason: str) -> None:
    with pytest.raises(CaptureError, match=reason) as caught:
        dni_fx.transform(make(), X)
    assert "\n" not in str(caught.value)


def outcome(net: nn.Module, model: nn.Module, x: Tensor, *, train: bool) -> dict[str, Any]:
    """Outputs and gradients of a step, then buffers and outputs of a second."""
    net.train(train)
    model.zero_grad()
    found: dict[str, Any] = {}
    for number in range(2):
        torch.manual_seed(number)
        random.seed(number)
        result = net(x.clone())
        loss_of(vars(result) if dataclasses.is_dataclass(result) else result).backward()
        leaves = pytree.tree_leaves(vars(result) if dataclasses.is_dataclass(result) else result)
        found |= {f"output {i}, {number}": t.detach() for i, t in enumerate(leaves) if isinstance(t, Tensor)}
    found |= {f"gradient {name}": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    # The constants of a graph are buffers that are not persistent.
    return found | {f"state {name}": value.clone() for name, value in model.state_dict().items()}


@pytest.mark.filterwarnings("ignore:.*activation checkpointing", "ignore:.*weight_norm", "ignore:.*spectral_norm")
@pytest.mark.parametrize(("make", "frontend"), MODELS, ids=[make.__name__ for make, _ in MODELS])
def test_a_model_that_breaks_tracers(make: Callable[[], nn.Module], frontend: str) -> None:
    x = torch.rand(4, 3, 6) if make is Packs else X
    model, eager = make(), make()
    eager.load_state_dict(model.state_dict())
    net = dni_fx.transform(model, x, cuts=2, unlock="none", mix=1.0)
    assert net.dni.plan.frontend == frontend, net.dni.plan.tried
    for train in (True, False):
        for batch in (x, torch.cat([x, x[:2] + 1])):
            expected = outcome(eager, eager, batch, train=train)
            torch.testing.assert_close(outcome(net, model, batch, train=train), expected, rtol=1e-4, atol=1e-6)
