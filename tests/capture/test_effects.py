"""Models whose forward writes to parameters: capturing changes nothing, and the net trains as the model does."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from nets import Stack
from oracle import failures
from torch import Tensor, nn
from torch.nn import functional as F

import dni_fx
from dni_fx.errors import CaptureError, DniFxError

torch.manual_seed(0)
X = torch.rand(4, 6)


class Writer(nn.Module):
    """A layer that does what a subclass says before it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        self.write(x)
        return self.layer(x)

    def write(self, x: Tensor) -> None:
        raise NotImplementedError


class SetsData(Writer):
    def write(self, x: Tensor) -> None:
        with torch.no_grad():
            self.layer.weight.data = torch.renorm(self.layer.weight.data, 2, 0, 0.25)


class Clamps(Writer):
    def write(self, x: Tensor) -> None:
        self.layer.weight.data.clamp_(-0.1, 0.1)


class ClampsWide(Writer):
    """The bounds are wide, so a capture sees no value change."""

    def write(self, x: Tensor) -> None:
        for parameter in self.layer.parameters():
            parameter.data.clamp_(-0.45, 0.45)


class Copies(Writer):
    def write(self, x: Tensor) -> None:
        self.layer.weight.data.copy_(self.layer.weight.data * 0.5)


class Multiplies(Writer):
    def write(self, x: Tensor) -> None:
        with torch.no_grad():
            self.layer.weight.mul_(0.9)


class AssignsParameter(Writer):
    def write(self, x: Tensor) -> None:
        self.layer.weight = nn.Parameter(self.layer.weight.detach().clamp(min=0))


class Moving(Writer):
    """The copy starts equal, and is not registered."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = [copy.deepcopy(self.layer)]

    def write(self, x: Tensor) -> None:
        with torch.no_grad():
            for mean, new in zip(self.teacher[0].parameters(), self.layer.parameters(), strict=True):
                mean.mul_(0.9).add_(new, alpha=0.1)

    def forward(self, x: Tensor) -> Tensor:
        self.write(x)
        with torch.no_grad():
            shift = self.teacher[0](x)
        return self.layer(x) + shift


class SetsFlag(Writer):
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def write(self, x: Tensor) -> None:
        self.calls += 1
        self.layer.weight.requires_grad_(bool(self.calls.item() % 2))


class ClearsGradient(Writer):
    def write(self, x: Tensor) -> None:
        self.layer.zero_grad()


class Steps(Writer):
    def __init__(self) -> None:
        super().__init__()
        self.optimizer = torch.optim.Adam(self.layer.parameters(), 0.01)

    def write(self, x: Tensor) -> None:
        self.optimizer.step()


class Hooks(Writer):
    def write(self, x: Tensor) -> None:
        if not self.layer.weight._backward_hooks:
            self.layer.weight.register_hook(lambda gradient: 0.5 * gradient)


class FirstBatch(Writer):
    """Sets its weight from the first batch, and never again."""

    ready = False

    def write(self, x: Tensor) -> None:
        if not self.ready:
            self.layer.weight.data.copy_(torch.eye(6) * x.detach().std())
            self.ready = True


WRITERS: list[type[Writer]] = [
    SetsData,
    Clamps,
    ClampsWide,
    Copies,
    Multiplies,
    AssignsParameter,
    Moving,
    SetsFlag,
    ClearsGradient,
    Steps,
    Hooks,
    FirstBatch,
]


class Inside(Stack):
    def __init__(self, writer: type[Writer]) -> None:
        super().__init__()
        self.writer = writer()

    def middle(self, h: Tensor) -> Tensor:
        return self.writer(h)


def at_root(writer: type[Writer]) -> nn.Module:
    """A model whose own forward writes."""

    class Root(writer):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.below, self.above, self.act = (
                nn.Linear(6, 6),
                nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2)),
                nn.Tanh(),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.above(super().forward(self.act(self.below(x))))

    return Root()


PLACES: list[tuple[str, Callable[[type[Writer]], nn.Module]]] = [("inside", Inside), ("at the root", at_root)]


def state_of(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    teachers = [m.teacher[0] for m in model.modules() if isinstance(m, Moving)]
    tensors += [(f"teacher.{name}", p) for teacher in teachers for name, p in teacher.named_parameters()]
    return {
        name: (id(t), t.data_ptr(), t.detach().clone(), t.requires_grad, id(t.grad), t._backward_hooks)
        for name, t in tensors
    }


def assert_same(after: dict[str, tuple[Any, ...]], before: dict[str, tuple[Any, ...]]) -> None:
    assert after.keys() == before.keys()
    for name, values in before.items():
        for value, old in zip(after[name], values, strict=True):
            assert torch.equal(value, old) if isinstance(old, Tensor) else value == old, name


def losses(net: nn.Module, model: nn.Module) -> list[float]:
    """Losses of four training steps, and of one call in eval mode."""
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    found = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = (net(X) ** 2).mean()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return [*found, (net.eval()(X) ** 2).mean().item()]


@pytest.mark.parametrize(("place", "make"), PLACES, ids=[place for place, _ in PLACES])
@pytest.mark.parametrize("writer", WRITERS)
def test_the_net_writes_and_trains_as_the_model(
    writer: type[Writer], place: str, make: Callable[[type[Writer]], nn.Module]
) -> None:
    torch.manual_seed(1)
    model = make(writer)
    eager = copy.deepcopy(model)
    before = state_of(model)
    net = dni_fx.transform(model, X, cuts=2, unlock="none", mix=1.0)
    assert_same(state_of(model), before)
    expected = losses(eager, eager)
    torch.testing.assert_close(losses(net, model), expected, rtol=1e-5, atol=1e-6)


class Bank(Stack):
    """A tensor that is neither a parameter nor a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.bank = torch.zeros(6)

    def middle(self, h: Tensor) -> Tensor:
        self.bank.mul_(0.9).add_(h.detach().mean(0))
        return h + self.bank


def test_an_attribute_that_forward_writes_to() -> None:
    model = Bank()
    net = dni_fx.transform(model, X, cuts=2)
    assert net.dni.plan.frontend == "modules"
    assert "writes to the attribute 'bank'" in net.dni.plan.tried[0]
    assert not model.bank.any()
    net(X)
    assert model.bank.all()


class OwnParameter(Stack):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))

    def middle(self, h: Tensor) -> Tensor:
        self.scale = nn.Parameter(self.scale.detach() * 0.9)
        return h * self.scale


def test_a_new_parameter_of_the_model_itself_stays_after_a_call() -> None:
    model, eager = OwnParameter(), OwnParameter()
    net = dni_fx.transform(model, X, cuts=2)
    eager.load_state_dict(model.state_dict())
    torch.testing.assert_close([net(X), net(X)], [eager(X), eager(X)])
    torch.testing.assert_close(net.scale, torch.full((6,), 0.81))


@pytest.mark.parametrize("writer", [SetsData, Moving, Steps])
def test_a_cut_beside_a_write_is_right(writer: type[Writer]) -> None:
    model = Inside(writer)
    before = state_of(model)
    net = dni_fx.transform(model, X, cuts=["act_1", "writer"])
    assert net.dni.plan.frontend == "fx"
    assert failures(net, X, {}) == {}
    assert_same(state_of(model), before)


@pytest.mark.parametrize("frontend", ["fx", "export"])
def test_a_graph_of_a_write_is_refused_with_the_line(frontend: str) -> None:
    model = at_root(ClampsWide)
    before = state_of(model)
    with pytest.raises(CaptureError) as caught:
        dni_fx.transform(model, X, frontend=frontend)
    message = str(caught.value)
    assert "test_effects.py:" in message and "parameter.data.clamp_(-0.45, 0.45)" in message
    assert "writes to the parameter 'layer.weight'" in message and "\n" not in message
    assert_same(state_of(model), before)


def test_without_verification_the_weights_stay_too() -> None:
    for make in (Inside, at_root):
        model = make(SetsData)
        before = state_of(model)
        dni_fx.plan(model, X, cuts=2, verify=False)
        assert_same(state_of(model), before)


class Assigns(Stack):
    """fx would lose the assignment."""

    def middle(self, h: Tensor) -> Tensor:
        self.b.weight.data = self.b.weight * 0.5
        return h


def test_an_assignment_to_a_stand_in_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"test_effects\.py:\d+: .*assigns 'data' of a tensor"):
        dni_fx.plan(Assigns(), X, cuts=2, frontend="fx", verify=False)
    assert dni_fx.plan(Assigns(), X, cuts=2).frontend == "modules"


class LocalLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.layer(x))
        if self.training:
            self.head(h).pow(2).mean().backward()
            h = h.detach()
        return h


@pytest.mark.parametrize("frontend", ["auto", "fx", "export", "modules"])
@pytest.mark.parametrize("last", [nn.Linear(6, 2), nn.Identity()], ids=["trained above", "nothing above"])
def test_backward_in_forward_is_refused_with_the_line(last: nn.Module, frontend: str) -> None:
    model = nn.Sequential(LocalLoss(), LocalLoss(), last)
    before = state_of(model)
    with pytest.raises(DniFxError) as caught:
        dni_fx.transform(model, X, frontend=frontend)
    message = str(caught.value)
    assert "forward of LocalLoss runs backward() itself" in message and "\n" not in message
    assert "test_effects.py:" in message and "self.head(h).pow(2).mean().backward()" in message
    assert "return the loss" in message  # the way out
    assert_same(state_of(model), before)


class FreesItsGraph(Stack):
    """It does not train by itself either: the loop's backward pass comes second."""

    def middle(self, h: Tensor) -> Tensor:
        h.pow(2).mean().backward()
        return h


def test_a_backward_pass_that_fails_is_no_failure_of_forward() -> None:
    with pytest.raises(DniFxError, match=r"^the backward pass fails .*second time.*runs backward\(\) itself"):
        dni_fx.transform(FreesItsGraph(), X)


class Descends(nn.Module):
    """A step of gradient descent on an energy, as forces or a gradient penalty are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, h: Tensor) -> Tensor:
        if not h.requires_grad:
            h = h.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.layer(h).pow(2).sum(), h, create_graph=True)
        return h - 0.1 * gradient


class DescendsAtRoot(Stack):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def middle(self, h: Tensor) -> Tensor:
        return Descends.forward(self, h)  # type: ignore[arg-type]


class DescendsFar(Stack):
    """The gradient of a module's energy goes through the layers before the module."""

    class Far(nn.Module):
        def forward(self, h: Tensor, x: Tensor) -> Tensor:
            return h + torch.autograd.grad(h.pow(2).sum(), x, create_graph=True)[0]

    def __init__(self) -> None:
        super().__init__()
        self.far = self.Far()

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return self.d(self.act(self.c(self.far(self.act(self.b(self.act(self.a(x)))), x))))


class DescendsInside(Stack):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Descends()

    def middle(self, h: Tensor) -> Tensor:
        return self.inner(h)


@pytest.mark.parametrize(
    ("make", "frontend", "forbidden"),
    [
        (DescendsInside, "fx", set()),
        (DescendsAtRoot, "modules", {"layer"}),
        (DescendsFar, "modules", {"a", "act", "b", "act_1"}),
    ],
)
def test_no_cut_is_inside_of_a_differentiation(
    make: Callable[[], nn.Module], frontend: str, forbidden: set[str]
) -> None:
    model = make()
    net = dni_fx.transform(model, X, cuts="leaves" if frontend == "fx" else 2)
    assert net.dni.plan.frontend == frontend
    assert not forbidden & {cut.after for cut in net.dni.plan.cuts}
    assert failures(net, X, {}) == {}
    for name in forbidden:
        with pytest.raises(DniFxError, match="forward itself differentiates through it"):
            dni_fx.transform(model, X, cuts=[name], frontend="modules")


class Forces(Stack):
    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(super().forward(x).sum(), x, create_graph=True)[0]


def test_a_model_that_differentiates_through_all_its_layers() -> None:
    with pytest.raises(DniFxError, match=r"test_effects\.py:\d+.*torch\.autograd\.grad itself.*a cut there changes"):
        dni_fx.transform(Forces(), X)


class Func(Stack):
    def middle(self, h: Tensor) -> Tensor:
        return h - 0.1 * torch.func.grad(lambda z: self.b(z).pow(2).sum())(h)


class Vmap(Stack):
    def middle(self, h: Tensor) -> Tensor:
        return torch.func.vmap(self.b)(h)


class Jvp(Stack):
    def middle(self, h: Tensor) -> Tensor:
        return torch.func.jvp(lambda z: F.tanh(self.b(z)), (h,), (torch.ones_like(h),))[1]


class Functional(Stack):
    def middle(self, h: Tensor) -> Tensor:
        return torch.func.functional_call(self.b, {"weight": self.b.weight * 2, "bias": self.b.bias}, (h,))


def test_torch_func_grad_is_refused_with_the_line() -> None:
    with pytest.raises(CaptureError, match=r"test_effects\.py:\d+: .*differentiates with torch\.func.*use torch"):
        dni_fx.transform(Func(), X)


@pytest.mark.parametrize(("make", "frontend"), [(Vmap, "modules"), (Jvp, "modules"), (Functional, "export")])
def test_other_transforms_of_torch_func(make: Callable[[], nn.Module], frontend: str) -> None:
    net = dni_fx.transform(make(), X, cuts=2)
    assert net.dni.plan.frontend == frontend
    assert failures(net, X, {}) == {}
    assert torch._C._functorch.peek_interpreter_stack() is None  # torch.export leaves a failed vmap open
