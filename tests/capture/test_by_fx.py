"""Captures: what is kept whole, what is refused with a line to go to, and that no wrong trace gets through."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import Base, Dicts
from torch import Tensor, fx, nn

import dni_fx
from dni_fx.errors import CaptureError
from dni_fx.model.inputs import to_inputs
from dni_fx.planning import Request, capture_and_plan

torch.manual_seed(0)  # unlucky weights let no gradient through, and a wrong one would not be seen
X = torch.rand(4, 6)


def trace(model: nn.Module, *args: Any, cuts: Any = "auto", **kwargs: Any) -> Any:
    return capture_and_plan(model, to_inputs(args, kwargs), Request(cuts, frontend="fx"))[0]


def calls(module: fx.GraphModule) -> list[str]:
    return [str(node.target) for node in module.graph.nodes if node.op == "call_module"]


def same(model: nn.Module, net: nn.Module, *args: Any, **kwargs: Any) -> None:
    for train in (True, False):
        model.train(train)
        net.train(train)
        torch.manual_seed(0)
        expected = model(*args, **kwargs)
        torch.manual_seed(0)
        got = net(*args, **kwargs)
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x) if self.training else x


class NoisyInside(nn.Module):
    """Reads self.training in a function inside forward."""

    def forward(self, x: Tensor) -> Tensor:
        return (lambda t: nn.functional.dropout(t, 0.5, self.training))(x)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else self.layer(-x)


class Loops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Branches()

    def forward(self, x: Tensor) -> Tensor:
        rows = [self.inner(row) for row in x]
        return torch.stack(rows)


class NoGrad(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = x.abs().mean(1, keepdim=True) + 0 * len(x)
        return x * scale


LEAVES: list[tuple[Callable[[], nn.Module], list[str]]] = [
    (Noisy, ["0", "1", "2"]),
    (NoisyInside, ["0", "1", "2"]),
    (Branches, ["0", "1", "2"]),
    (Loops, ["0", "1", "2"]),
    (lambda: nn.Sequential(nn.Tanh(), Branches()), ["0", "1.0", "1.1", "2"]),
    (lambda: nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), ["0", "1", "2"]),
    (lambda: fx.symbolic_trace(nn.Sequential(nn.Tanh())), ["0", "1", "2"]),
]


@pytest.mark.parametrize(("make", "expected"), LEAVES, ids=[str(i) for i in range(len(LEAVES))])
def test_kept_whole(make: Callable[[], nn.Module], expected: list[str]) -> None:
    model = nn.Sequential(nn.Linear(6, 6), make(), nn.Linear(6, 2))
    net = trace(model, X)
    assert calls(net) == expected
    same(model, net, X)


class RootBranches(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if h.sum() > 0:
            return self.above(h)
        return h


class RootTraining(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.above(nn.functional.dropout(self.a(x), 0.5, self.training))


class RootIterates(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.above(torch.stack([self.a(row) for row in x]))


@pytest.mark.parametrize(
    ("model", "line", "text"),
    [
        (RootBranches(), "if h.sum() > 0", "if h.sum() > 0:"),
        (RootIterates(), "for row in x", "for row in x"),
        (RootTraining(), "def forward", "self.training"),
    ],
    ids=["control-flow", "iteration", "training"],
)
def test_root_that_cannot_be_traced(model: nn.Module, line: str, text: str) -> None:
    with pytest.raises(CaptureError) as caught:
        dni_fx.transform(model, X, frontend="fx")
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert "\n" not in message
    assert text in message
    assert "submodule" in message  # what to do
    code = type(model).forward.__code__
    source = Path(__file__).read_text().splitlines()
    number = next(n for n in range(code.co_firstlineno, code.co_firstlineno + 6) if line in source[n - 1])
    assert f"{Path(__file__).name}:{number}" in message


class Detached(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.above(self.a(x).detach() + self.b(x))


REFUSED_AT_THE_ROOT = [RootBranches(), RootTraining(), RootIterates()]


@pytest.mark.parametrize("unlock", ["none", "backward"])
@pytest.mark.parametrize("inner", [*REFUSED_AT_THE_ROOT, NoGrad()], ids=lambda m: type(m).__name__)
def test_the_advice_holds(inner: nn.Module, unlock: str) -> None:
    """What a root may not do, a submodule that is kept whole may."""
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), inner, nn.Linear(6, 2))
    net = dni_fx.transform(model, X, cuts=["1", "2"] if isinstance(inner, Base) else 2, unlock=unlock)
    net(X).sum().backward()
    same(model, trace(model, X), X)


def test_detach_in_the_model_survives() -> None:
    model = Detached()
    net = dni_fx.transform(model, X, cuts=2)
    same(model, net, X)


def rows(x: Any) -> int:
    return len(x) if type(x) is Tensor else 4


def test_a_model_with_an_attribute_dni() -> None:
    class Taken(Base):
        def __init__(self) -> None:
            super().__init__()
            self.dni = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.above(self.a(x))

    with pytest.raises(CaptureError, match="attribute `dni`"):
        dni_fx.transform(Taken(), X)


def test_a_rewritten_model_is_not_rewritten_again() -> None:
    net = dni_fx.transform(Dicts(), ({"x": X, "mask": X},), cuts=2)
    with pytest.raises(CaptureError, match="restore"):
        dni_fx.transform(net, ({"x": X, "mask": X},), cuts=2)
    dni_fx.transform(dni_fx.restore(net), ({"x": X, "mask": X},), cuts=2)


def test_a_graph_module() -> None:
    model = fx.symbolic_trace(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)))
    net = dni_fx.transform(model, X, cuts=2)
    same(model, net, X)
    assert list(model.state_dict()) == [k for k in net.state_dict() if not k.startswith("dni.")]


class Spare(Base):
    """Things that forward does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.alone = nn.Parameter(torch.ones(3))
        self.empty = nn.Sequential()
        self.register_buffer("kept", torch.arange(3.0))
        self.register_buffer("hidden", torch.arange(6.0), persistent=False)
        self.register_parameter("nothing", None)

    def forward(self, x: Tensor) -> Tensor:
        return self.above(self.a(x) + self.hidden)


def test_unused_and_non_persistent_things_are_kept() -> None:
    model = Spare()
    net = dni_fx.transform(model, X, cuts=2)
    own = [k for k in net.state_dict() if not k.startswith("dni.")]
    assert own == list(model.state_dict())
    assert "hidden" not in own and torch.equal(net.hidden, torch.arange(6.0))
    names = [n for n, _ in net.named_modules() if not n.startswith("dni")]
    assert names == [n for n, _ in model.named_modules()]
    assert dict(net.named_buffers()).keys() >= dict(model.named_buffers()).keys()
    net.double()
    assert net.hidden.dtype == net.alone.dtype == torch.float64
    same(model, net, X.double())


def test_hooks_of_the_person_still_run_once() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    seen: list[int] = []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    net = dni_fx.transform(model, X, cuts=2)
    seen.clear()
    net(X)
    assert seen == [1]


def test_root_hooks_are_refused_or_kept() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    model.register_forward_hook(lambda module, args, output: output * 3)
    with pytest.raises(CaptureError, match="hooks"):
        dni_fx.transform(model, X, frontend="fx")
