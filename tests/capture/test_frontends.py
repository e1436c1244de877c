"""What people write: each model is taken by the front end that sees it whole, and all of check holds."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import Checkpointed, Keywords, Nested, Stack, TiedWeights, Twice
from oracle import failures
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

import dni_fx
from dni_fx.errors import CaptureError, DniFxError

pytestmark = pytest.mark.slow

X = torch.rand(4, 6)


class DataBranch(Stack):
    def middle(self, h: Tensor) -> Tensor:
        return h * 2 if h.sum() > 0 else h


class Loops(Stack):
    def middle(self, h: Tensor) -> Tensor:
        for _ in range(int(h.detach().abs().sum()) % 3):
            h = h * 0.9
        return h


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class CustomFunction(Stack):
    def middle(self, h: Tensor) -> Tensor:
        return Sign.apply(h)


class Replaced(Stack):
    """A buffer that forward puts another tensor in the place of."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))

    def middle(self, h: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
        return h - self.mean


class Written(Stack):
    """A buffer that forward writes to."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))

    def middle(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            self.mean.mul_(0.9).add_(h.mean(0), alpha=0.1)
        return h - self.mean


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


class Training(Stack):
    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.a(x))
        if self.training:
            h = h + 0.1 * torch.randn(x.shape[0], 6)
        return self.d(self.act(self.c(nn.functional.dropout(h, 0.2, self.training))))


@dataclass
class Output:
    logits: Tensor
    hidden: tuple[Tensor, ...]


pytree.register_dataclass(Output)


class Dataclass(Stack):
    def forward(self, x: Tensor) -> Output:
        h = self.act(self.b(self.act(self.a(x))))
        return Output(self.d(self.act(self.c(h))), (h, x))


class Complex(Stack):
    def middle(self, h: Tensor) -> Tensor:
        return torch.fft.ifft(torch.fft.fft(h) * torch.exp(1j * torch.arange(6))).real


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.blocks = nn.ModuleList([nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2)])
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 20)

    def forward(self, ids: Tensor) -> Tensor:
        assert ids.dim() == 2
        h = self.embed(ids) + torch.arange(ids.shape[1], dtype=torch.float32)[:, None]
        for block in self.blocks:
            h = block(h)
        return self.head(self.attend(h, h, h, need_weights=False)[0])


class Recurrences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 5, batch_first=True, num_layers=2)
        self.gru = nn.GRU(5, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, state = self.lstm(x, state)
        return self.head(self.gru(y)[0]), state


Case = tuple[str, Callable[[], nn.Module], tuple[Any, ...], dict[str, Any], str]
IDS_OF_WORDS = torch.randint(0, 20, (4, 7))
STATE = (torch.rand(2, 4, 5), torch.rand(2, 4, 5))

CASES: list[Case] = [
    ("plain", Stack, (X,), {}, "fx"),
    ("data branch", DataBranch, (X,), {}, "modules"),
    ("loops over data", Loops, (X,), {}, "modules"),
    ("custom function", CustomFunction, (X,), {}, "modules"),
    ("buffer replaced", Replaced, (X,), {}, "export"),
    ("buffer written", Written, (X,), {}, "export"),
    ("no_grad", NoGrad, (X,), {}, "export"),
    ("autocast", Autocast, (X,), {}, "export"),
    ("training", Training, (X,), {}, "export"),
    ("keywords", Keywords, (X, X), {"mask": X, "scale": X, "more": X}, "fx"),
    ("no mask", Keywords, (X,), {"mask": None}, "fx"),
    ("dataclass", Dataclass, (X,), {}, "fx"),
    ("called twice", Twice, (X,), {}, "fx"),
    ("tied", TiedWeights, (X,), {}, "fx"),
    ("checkpoint", Checkpointed, (X,), {}, "fx"),
    ("complex", Complex, (X,), {}, "fx"),
    ("attention", Attention, (IDS_OF_WORDS,), {}, "export"),
    ("nested", Nested, (X,), {}, "fx"),
    ("recurrent", Recurrences, (torch.rand(4, 3, 6),), {}, "fx"),
    ("state", Recurrences, (torch.rand(4, 3, 6), STATE), {}, "fx"),
    ("half", lambda: Stack().bfloat16(), (X.bfloat16(),), {}, "fx"),
    ("a graph already", lambda: fx.symbolic_trace(Stack()), (X,), {}, "fx"),
]


@pytest.mark.filterwarnings("ignore:.*activation checkpointing")  # of Checkpointed
@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_auto_takes_it(case: Case) -> None:
    _, make, args, kwargs, frontend = case
    net = dni_fx.transform(make(), args, cuts=2, example_kwargs=kwargs)
    assert net.dni.plan.frontend == frontend, net.dni.plan.tried
    assert len(net.dni.plan.tried) == ["fx", "export", "modules"].index(frontend)
    assert failures(net, args, kwargs) == {}


REFUSED = {  # with a part of the reason
    ("data branch", "export"): "data-dependent",
    ("loops over data", "export"): "torch.export does not take it",
    ("custom function", "export"): "gradients in train mode differ",
}


@pytest.mark.filterwarnings("ignore:.*activation checkpointing")
@pytest.mark.parametrize(
    ("case", "frontend"),
    # What auto takes by a front end is in the test above.
    [(case, frontend) for case in CASES for frontend in ("export", "modules") if frontend != case[4]],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_front_end_by_name_is_right_or_refuses(case: Case, frontend: str) -> None:
    name, make, args, kwargs, _ = case
    if (name, frontend) in REFUSED:
        with pytest.raises(CaptureError) as caught:
            dni_fx.transform(make(), args, cuts=2, example_kwargs=kwargs, frontend=frontend)
        assert REFUSED[name, frontend] in str(caught.value) and "\n" not in str(caught.value)
        return
    net = dni_fx.transform(make(), args, cuts=2, example_kwargs=kwargs, frontend=frontend)
    assert net.dni.plan.frontend == frontend
    assert failures(net, args, kwargs) == {}


@pytest.mark.parametrize(
    ("case", "unlock"),
    [
        pytest.param(
            case,
            unlock,
            marks=pytest.mark.slow if case[0] == "attention" or (unlock == "none" and case[4] == "export") else (),
        )
        for case in CASES
        if case[4] != "fx"
        for unlock in ("none", "backward")
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_copies_pickles_and_folders(case: Case, unlock: str, tmp_path: Path) -> None:
    _, make, args, kwargs, _ = case
    model = make()
    net = dni_fx.transform(model, args, cuts=2, example_kwargs=kwargs, unlock=unlock)
    for parameter in net.dni.parameters():
        nn.init.normal_(parameter)
    dni_fx.save(net, tmp_path / "net")
    with pytest.raises(DniFxError, match="model=model"):
        dni_fx.load(tmp_path / "net")
    loaded = dni_fx.load(tmp_path / "net", model=make())
    others = [copy.deepcopy(net), loaded]
    others.append(pickle.loads(pickle.dumps(net)))
    expected = _step(net, args, kwargs)
    for other in others:
        got = _step(other, args, kwargs)
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, msg=name)
    assert dni_fx.restore(loaded) is not model


def _step(net: nn.Module, args: Any, kwargs: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    net.zero_grad()
    leaves = [t for t in pytree.tree_leaves(net.train()(*args, **kwargs)) if isinstance(t, Tensor) and t.requires_grad]
    sum(t.abs().sum() for t in leaves).backward()  # type: ignore[union-attr]
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def test_restore_gives_the_model_back() -> None:
    for make in (NoGrad, DataBranch):
        model = make()
        net = dni_fx.transform(model, X, cuts=2)
        assert dni_fx.restore(net) is model
        assert not any(m._forward_hooks for m in model.modules())


class Hopeless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(6))
        self.other = nn.Parameter(torch.rand(6))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight * self.other if x.sum() > 0 else x * self.weight


def test_what_no_front_end_takes_is_refused_with_all_reasons() -> None:
    with pytest.raises(CaptureError) as caught:
        dni_fx.transform(Hopeless(), X)
    message = str(caught.value)
    assert "\n" not in message
    assert all(f"{name}: " in message for name in ("fx", "export", "modules"))
    assert "test_frontends.py:" in message


def test_an_unknown_front_end() -> None:
    with pytest.raises(DniFxError, match="there are auto, fx, export, modules"):
        dni_fx.transform(Stack(), X, frontend="jit")


def test_a_module_that_a_trace_cannot_see_into_is_left_to_export() -> None:
    model = nn.Sequential(Attention(), nn.Linear(20, 3))
    net = dni_fx.transform(model, IDS_OF_WORDS, cuts=2)
    assert net.dni.plan.frontend == "export"
    assert "keeps '0' whole" in net.dni.plan.tried[0]
    assert dni_fx.transform(model, IDS_OF_WORDS, frontend="fx", cuts=2).dni.plan.frontend == "fx"


def test_without_verification_the_first_capture_is_taken() -> None:
    assert dni_fx.transform(NoGrad(), X, cuts=2, verify=False).dni.plan.frontend == "fx"
    assert dni_fx.plan(NoGrad(), X, cuts=2, verify=False).frontend == "fx"
    assert dni_fx.plan(NoGrad(), X, cuts=2).frontend == "export"
