"""Captures: what is kept whole, what is refused with a line to go to, and that no wrong trace gets through."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import dni_fx
from dni_fx.compiler import Request, capture_and_plan
from dni_fx.errors import CaptureError, DniFxError
from dni_fx.model.inputs import given

torch.manual_seed(0)  # unlucky weights let no gradient through, and a wrong one would not be seen
X = torch.rand(4, 6)


class Base(nn.Module):
    """Three layers, for forwards that differ."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))

    def above(self, h: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(h))))


def trace(model: nn.Module, *args: Any, cuts: Any = "auto", **kwargs: Any) -> Any:
    return capture_and_plan(model, given(args, kwargs), Request(cuts, frontend="fx"))[0]


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


# --------------------------------------------------------------------------------------------------- leaves
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
    assert f"test_tracing.py:{number}" in message


# ------------------------------------------------------------------------------------------------- arguments
class Arguments(Base):
    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, double: bool = False, mode: str = "plain", pair: Any = None
    ) -> Tensor:
        h = self.a(x)
        if mask is not None:
            h = h * mask
        if double:
            h = 2 * h
        if mode == "shifted":
            h = h + 1
        if pair is not None:
            h = h + pair[0] * pair[1]["scale"]
        return self.above(h)


ARGUMENTS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("plain", (X,), {}),
    ("by-name", (), {"x": X}),
    ("none-given", (X, None), {}),
    ("mask", (X, torch.rand(4, 6)), {}),
    ("mask-by-name", (X,), {"mask": torch.rand(4, 6)}),
    ("all-by-name", (), {"mask": torch.rand(4, 6), "x": X}),
    ("flag", (X,), {"double": True}),
    ("text", (X, None), {"mode": "shifted", "double": True}),
    ("nested", (X,), {"pair": (torch.rand(4, 6), {"scale": torch.rand(4, 6)})}),
]


@pytest.mark.parametrize(("args", "kwargs"), [c[1:] for c in ARGUMENTS], ids=[c[0] for c in ARGUMENTS])
@pytest.mark.parametrize("unlock", ["none", "backward"])
def test_arguments(unlock: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    model = Arguments()
    net = dni_fx.transform(model, args, example_kwargs=kwargs, unlock=unlock, classes=3)
    model.eval()
    net.eval()
    torch.testing.assert_close(net(*args, **kwargs), model(*args, **kwargs), rtol=0, atol=0)
    net.train()
    net(*args, **kwargs, dni_context=torch.tensor([0, 1, 2, 0])).sum().backward()
    assert list(net.dni.plan.inputs)


CHANGED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"double": True}, {"double": False}, "double"),
    ({"double": True}, {}, ""),  # not given: the value of the trace
    ({}, {"double": True}, "double"),
    ({"mode": "shifted"}, {"mode": "plain"}, "mode"),
    ({}, {"mask": torch.rand(4, 6)}, "mask"),
    ({"mask": None}, {"mask": torch.rand(4, 6)}, "mask"),
]


@pytest.mark.parametrize(("traced", "called", "name"), CHANGED)
def test_flags_are_specialised_and_changes_refused(traced: Any, called: Any, name: str) -> None:
    net = dni_fx.transform(Arguments(), X, example_kwargs=traced)
    if not name:
        net(X, **called)
        return
    with pytest.raises(TypeError, match=f"argument '{name}' was"):
        net(X, **called)


class Star(Base):
    def forward(self, *tensors: Tensor, **named: Tensor) -> Tensor:
        return self.above(self.a(tensors[0] + tensors[1]) + named["extra"])


class Dicts(Base):
    def forward(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        h = self.a(batch["x"]) * batch["mask"]
        return {"y": self.above(h), "more": (h, [h + 1])}


class OrderOfNames(Base):
    """An argument that is called like a node."""

    def forward(self, relu: Tensor, a: Tensor) -> Tensor:
        return self.above(self.a(relu)) + a


SHAPES: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = [
    (Star(), (X, X + 1), {"extra": X}),
    (Dicts(), ({"x": X, "mask": torch.rand(4, 6)},), {}),
    (OrderOfNames(), (X, X), {}),
    (OrderOfNames(), (), {"a": X, "relu": X + 1}),
]


@pytest.mark.parametrize(("model", "args", "kwargs"), SHAPES, ids=["star", "dicts", "names", "names-swapped"])
def test_signatures(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    net = dni_fx.transform(model, args, example_kwargs=kwargs)
    model.eval()
    net.eval()
    torch.testing.assert_close(net(*args, **kwargs), model(*args, **kwargs), rtol=0, atol=0)
    net.train()
    torch.testing.assert_close(net(*args, **kwargs), model(*args, **kwargs), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        ((), {}, "missing"),
        ((X, None, X), {}, "too many"),
        ((X,), {"masc": X}, "masc"),
        ((X,), {"x": X}, "x"),
        ((torch.rand(4, 7),), {}, "4x7"),
        (("text",), {}, "does not run"),
    ],
)
def test_inputs_that_do_not_fit(args: Any, kwargs: Any, text: str) -> None:
    with pytest.raises(DniFxError, match=text) as caught:
        dni_fx.transform(Arguments(), args, example_kwargs=kwargs)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


# -------------------------------------------------------------------------------- silently another network
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


class Detached(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.above(self.a(x).detach() + self.b(x))


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


REFUSED_AT_THE_ROOT = [RootBranches(), RootTraining(), RootIterates()]


@pytest.mark.parametrize("unlock", ["none", "backward"])
@pytest.mark.parametrize("inner", [*REFUSED_AT_THE_ROOT, NoGrad()], ids=lambda m: type(m).__name__)
def test_the_advice_holds(inner: nn.Module, unlock: str) -> None:
    """What a root may not do, a submodule that is kept whole may."""
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), inner, nn.Linear(6, 2))
    net = dni_fx.transform(model, X, cuts=["1", "2"] if isinstance(inner, Base) else "auto", unlock=unlock)
    net(X).sum().backward()
    same(model, trace(model, X), X)


def test_a_batch_size_that_the_model_itself_bakes_in_is_accepted() -> None:
    net = dni_fx.transform(BakedBatch(), X)
    assert net(X).shape == (4, 6)


def test_detach_in_the_model_survives() -> None:
    model = Detached()
    net = dni_fx.transform(model, X)
    same(model, net, X)


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


# ------------------------------------------------------------------------------------------ other kinds of model
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
    net = dni_fx.transform(Dicts(), ({"x": X, "mask": X},))
    with pytest.raises(CaptureError, match="restore"):
        dni_fx.transform(net, ({"x": X, "mask": X},))
    dni_fx.transform(dni_fx.restore(net), ({"x": X, "mask": X},))


def test_a_graph_module() -> None:
    model = fx.symbolic_trace(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)))
    net = dni_fx.transform(model, X)
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
    net = dni_fx.transform(model, X)
    own = [k for k in net.state_dict() if not k.startswith("dni.")]
    assert own == list(model.state_dict())
    assert "hidden" not in own and torch.equal(net.hidden, torch.arange(6.0))
    names = [n for n, _ in net.named_modules() if not n.startswith("dni")]
    assert names == [n for n, _ in model.named_modules()]
    assert dict(net.named_buffers()).keys() >= dict(model.named_buffers()).keys()
    net.double()
    assert net.hidden.dtype == net.alone.dtype == torch.float64
    same(model, net, X.double())


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.5)
        self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))
        self.last: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.a(self.drop(self.norm(x)))
        return self.c(torch.relu(self.b(torch.relu(self.last))))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("example", [X, None], ids=["given", "probed"])
def test_the_model_is_left_as_it_was(train: bool, example: Tensor | None) -> None:
    model = Everything().train(train)
    model.drop.train(not train)
    model.b.weight.grad = torch.ones(6, 6)
    model.c.bias.requires_grad_(False)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    tensors = {k: id(v) for k, v in [*model.named_parameters(), *model.named_buffers()]}
    flags = [m.training for m in model.modules()]
    needed = [p.requires_grad for p in model.parameters()]
    attributes = [sorted(vars(m)) for m in model.modules()]
    rng, x = torch.get_rng_state(), X.clone()
    dni_fx.plan(model, example, cuts=2)
    assert torch.equal(torch.get_rng_state(), rng)
    net = dni_fx.transform(model, example, cuts=2)  # makes synthesizers, so it may draw from the RNG
    assert torch.equal(X, x)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert {k: id(v) for k, v in [*model.named_parameters(), *model.named_buffers()]} == tensors
    assert [m.training for m in model.modules()] == flags
    assert [p.requires_grad for p in model.parameters()] == needed
    assert [sorted(vars(m)) for m in model.modules()] == attributes
    assert model.last is None
    assert [n for n, p in model.named_parameters() if p.grad is not None] == ["b.weight"]
    assert torch.equal(model.b.weight.grad, torch.ones(6, 6))
    assert net.training == train
    assert all(m.training == train for m in net.dni.modules())


def test_hooks_of_the_person_still_run_once() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    seen: list[int] = []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    net = dni_fx.transform(model, X)
    seen.clear()
    net(X)
    assert seen == [1]


def test_root_hooks_are_refused_or_kept() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    model.register_forward_hook(lambda module, args, output: output * 3)
    with pytest.raises(CaptureError, match="hooks"):
        dni_fx.transform(model, X, frontend="fx")
