"""What people write: each model is taken by the front end that sees it whole, and all of check holds."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import Stack
from oracle import failures
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

import dni_fx
from dni_fx.errors import CaptureError, DniFxError, NoLegalCutError

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


class Keywords(Stack):
    def forward(self, x: Tensor, *rest: Tensor, mask: Tensor | None = None, **extra: Tensor) -> dict[str, Any]:
        h = self.act(self.b(self.act(self.a(x))))
        for other in rest:
            h = h + other
        for name in sorted(extra):
            h = h * extra[name]
        if mask is not None:
            h = h * mask
        return {"out": self.d(self.act(self.c(h))), "hidden": h, "nothing": None, "three": 3}


@dataclass
class Output:
    logits: Tensor
    hidden: tuple[Tensor, ...]


pytree.register_dataclass(Output)


class Dataclass(Stack):
    def forward(self, x: Tensor) -> Output:
        h = self.act(self.b(self.act(self.a(x))))
        return Output(self.d(self.act(self.c(h))), (h, x))


class Twice(Stack):
    def middle(self, h: Tensor) -> Tensor:
        return self.act(self.b(self.act(self.b(h))))


class TiedWeights(Stack):
    def __init__(self) -> None:
        super().__init__()
        self.d.weight = self.a.weight


class Checkpointed(Stack):
    def middle(self, h: Tensor) -> Tensor:
        return checkpoint(lambda t: self.act(self.b(t)), h, use_reentrant=False)


class Complex(Stack):
    def middle(self, h: Tensor) -> Tensor:
        return torch.fft.ifft(torch.fft.fft(h) * torch.exp(1j * torch.arange(6))).real


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.blocks = nn.ModuleList([nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(3)])
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 20)

    def forward(self, ids: Tensor) -> Tensor:
        assert ids.dim() == 2
        h = self.embed(ids) + torch.arange(ids.shape[1], dtype=torch.float32)[:, None]
        for block in self.blocks:
            h = block(h)
        return self.head(self.attend(h, h, h, need_weights=False)[0])


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Sequential(nn.Linear(6, 6), nn.Tanh()), nn.Linear(6, 6)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return x


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
    net = dni_fx.transform(make(), args, example_kwargs=kwargs)
    assert net.dni.plan.frontend == frontend, net.dni.plan.tried
    assert len(net.dni.plan.tried) == ["fx", "export", "modules"].index(frontend)
    assert failures(net, args, kwargs) == {}


@pytest.mark.filterwarnings("ignore:.*activation checkpointing")
@pytest.mark.parametrize("frontend", ["export", "modules"])
@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_a_front_end_by_name_is_right_or_refuses(case: Case, frontend: str) -> None:
    _, make, args, kwargs, _ = case
    try:
        net = dni_fx.transform(make(), args, example_kwargs=kwargs, frontend=frontend)
    except (CaptureError, NoLegalCutError) as error:
        assert "\n" not in str(error)
        return
    assert net.dni.plan.frontend == frontend
    assert failures(net, args, kwargs) == {}


@pytest.mark.parametrize("frontend", ["export", "modules"])
def test_other_batch_sizes_and_the_same_result(frontend: str) -> None:
    model = Keywords()
    net = dni_fx.transform(model, (X, X), example_kwargs={"mask": X}, frontend=frontend)
    for rows in (1, 3, 9):
        x = torch.rand(rows, 6)
        for got in (net(x, x, mask=x), net.eval()(x, x, mask=x)):
            assert got.keys() == model(x, x).keys()
            assert got["nothing"] is None and got["three"] == 3 and got["out"].shape == (rows, 6)
        net.train()


def test_a_call_unlike_the_captured_one_is_refused() -> None:
    net = dni_fx.transform(Keywords(), (X,), example_kwargs={"mask": X}, frontend="export")
    net(X, mask=X)
    net(x=X, mask=X)
    for args, kwargs in (((X,), {}), ((X, X), {"mask": X}), ((X,), {"mask": None})):
        with pytest.raises(TypeError, match="rewrite the model"):
            net(*args, **kwargs)
    with pytest.raises(TypeError, match="size 3 along axis 0, not 4, as another argument has it"):
        net(X, mask=X[:3])
    with pytest.raises(TypeError, match="size 5 along axis 1, not 6"):
        net(X[:, :5], mask=X[:, :5])


@pytest.mark.parametrize("case", [c for c in CASES if c[4] != "fx"], ids=lambda c: c[0])
@pytest.mark.parametrize("unlock", ["none", "backward"])
def test_copies_pickles_and_folders(case: Case, unlock: str, tmp_path: Path) -> None:
    _, make, args, kwargs, _ = case
    model = make()
    net = dni_fx.transform(model, args, example_kwargs=kwargs, unlock=unlock)
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
        net = dni_fx.transform(model, X)
        assert dni_fx.restore(net) is model
        assert not any(m._forward_hooks for m in model.modules())


# ---------------------------------------------------------------------------------------------- the choice
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
    net = dni_fx.transform(model, IDS_OF_WORDS)
    assert net.dni.plan.frontend == "export"
    assert "keeps '0' whole" in net.dni.plan.tried[0]
    assert dni_fx.transform(model, IDS_OF_WORDS, frontend="fx", cuts=2).dni.plan.frontend == "fx"


def test_without_verification_the_first_capture_is_taken() -> None:
    assert dni_fx.transform(NoGrad(), X, verify=False).dni.plan.frontend == "fx"
    assert dni_fx.plan(NoGrad(), X, verify=False).frontend == "fx"
    assert dni_fx.plan(NoGrad(), X).frontend == "export"


def test_the_plan_says_what_is_tied() -> None:
    plan = dni_fx.plan(TiedWeights(), X, cuts=["b"])
    assert plan.tied == {"a.weight": (0, 1)}
    assert dni_fx.Plan.from_json(plan.to_json()) == plan


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


# -------------------------------------------------------------------------------------------------- marks
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


def test_no_mark_is_said() -> None:
    for frontend in ("fx", "modules"):
        with pytest.raises(DniFxError, match="holds no mark"):
            dni_fx.transform(Stack(), X, cuts="marked", frontend=frontend)


# ------------------------------------------------------------------------------- what a reviewer found: modules
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


# ------------------------------------------------------------------------------ what a reviewer found: export
class OwnNames(nn.Module):
    """Children called like attributes of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.settings, self.flat, self.calling, self.recall = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.recall(torch.tanh(self.calling(torch.tanh(self.flat(torch.tanh(self.settings(x)))))))


class Moody(Stack):
    """Keeps one of its modules in eval mode, as people do with a pretrained batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.noise = nn.BatchNorm1d(6), nn.Dropout(0.5)

    def train(self, mode: bool = True) -> "Moody":
        super().train(mode)
        self.norm.eval()
        return self

    def middle(self, h: Tensor) -> Tensor:
        return self.noise(self.norm(h))


class ByPlace(Stack):
    def forward(self, x: Tensor, scale: float = 1.0, *rest: Tensor) -> Tensor:
        h = self.act(self.b(self.act(self.a(x * scale)))) + sum(rest)
        return self.d(self.act(self.c(h)))


class ByPlaceAlone(Stack):
    def forward(self, x: Tensor, mask: Tensor | None = None, y: Tensor | None = None, /) -> Tensor:
        h = self.act(self.b(self.act(self.a(x))))
        return self.d(self.act(self.c(h if y is None else h + y)))


@pytest.mark.parametrize("frontend", ["fx", "export", "modules"])
@pytest.mark.parametrize(
    ("make", "args"),
    [(OwnNames, (X,)), (Moody, (X,)), (ByPlace, (X, 1.0, X)), (ByPlaceAlone, (X, None, X))],
    ids=["own names", "moody", "by place", "by place alone"],
)
def test_more_that_people_write(make: Callable[[], nn.Module], args: Any, frontend: str) -> None:
    net = dni_fx.transform(make(), args, frontend=frontend)
    assert failures(net, args, None) == {}
    net.train()(*args).sum().backward()


def test_a_mode_that_export_has_fixed_is_not_changed_in_silence() -> None:
    net = dni_fx.transform(Moody(), X, frontend="export")
    net.train()
    assert not net.norm.training
    net(X)
    net.noise.eval()
    with pytest.raises(DniFxError, match="noise is in eval mode"):
        net(X)


class Looks(Stack):
    def forward(self, ids: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            h = nn.functional.embedding(ids, self.a.weight)
            h = self.b(h)
        return self.d(self.act(self.c(h.float())))


def test_an_error_in_an_autocast_block_does_not_leave_it_open() -> None:
    net = dni_fx.transform(Looks(), torch.randint(0, 6, (4, 3)), frontend="export")
    with pytest.raises(IndexError):
        net(torch.full((4, 3), 99))
    assert not torch.is_autocast_enabled("cpu")
    assert (torch.rand(2, 2) @ torch.rand(2, 2)).dtype == torch.float32


class Inner(Stack):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2.0 if self.training else 1.0)


def test_a_graph_without_a_place_to_cut_is_left_to_the_next() -> None:
    net = dni_fx.transform(nn.Sequential(Inner()), X)
    assert net.dni.plan.frontend == "export"
    assert net.dni.plan.tried == ("fx: its graph has no legal cut",)


class Counts(Stack):
    calls = 0

    def middle(self, h: Tensor) -> Tensor:
        self.calls += 1
        return h * min(1.0, self.calls / 10)


def test_what_changes_from_call_to_call_is_not_captured() -> None:
    assert dni_fx.transform(Counts(), X).dni.plan.frontend == "modules"
