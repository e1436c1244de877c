"""Captures that run, and are another network: each of these passed once."""

import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import Stack
from oracle import failures
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import dni_fx
from dni_fx.errors import CaptureError, DniFxError

X = torch.rand(4, 6)
IDS = torch.randint(0, 20, (4, 10))


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.stack, self.head = nn.Embedding(20, 6), Stack(), nn.Linear(6, 20)

    def forward(self, ids: Tensor, labels: Tensor | None = None, **unused: Any) -> Any:
        logits = self.head(self.stack(self.embed(ids)))
        return logits if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def test_one_tensor_as_two_arguments() -> None:
    model = Language()
    net = dni_fx.transform(model, (), example_kwargs={"ids": IDS, "labels": IDS}, frontend="export")
    other = torch.randint(0, 20, (4, 10))
    torch.testing.assert_close(net(ids=IDS, labels=other), model(ids=IDS, labels=other))


class Frozen(Stack):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * (1.0 if self.training else 1.5))

    def middle(self, h: Tensor) -> Tensor:
        return self.norm(h)


@pytest.mark.parametrize("frontend", ["auto", "modules"])
def test_a_module_in_eval_mode_stays_there(frontend: str) -> None:
    model = Frozen()
    model.norm.eval()
    net = dni_fx.transform(model, X, frontend=frontend)
    mean = model.norm.running_mean.clone()  # type: ignore[union-attr]
    torch.testing.assert_close(net(X), model(X))
    assert torch.equal(model.norm.running_mean, mean)  # type: ignore[arg-type]
    assert failures(net, X, None) == {}


class Window(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.stack = nn.Embedding(20, 6), Stack()

    def forward(self, ids: Tensor) -> Tensor:
        h = self.stack(self.embed(ids))
        if ids.shape[1] > 16:
            h = h[:, -16:] * 2
        return h.mean(1)


def test_a_branch_on_a_size_is_guarded() -> None:
    model = Window()
    net = dni_fx.transform(model, IDS, frontend="export")
    net(IDS[:, :5])
    with pytest.raises(TypeError, match=r"another branch where not \['ids'\].size\(\)\[1\] <= 16"):
        net(torch.randint(0, 20, (4, 24)))


@dataclass
class Unregistered:
    logits: Tensor


class HidesItsOutput(Stack):
    def drop(self, h: Tensor) -> Tensor:
        return F.dropout(h, 0.5, self.training)

    def forward(self, x: Tensor) -> Unregistered:
        return Unregistered(super().forward(x))

    def middle(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            shift = self.b(h)
        return self.drop(h) + shift


class Steps(Stack):
    def __init__(self) -> None:
        super().__init__()
        self.step, self.auxiliary = 0, torch.zeros(())

    def middle(self, h: Tensor) -> Tensor:
        self.step += 1
        self.auxiliary = (h * h).mean()
        return h


class DrawsInPython(Stack):
    def middle(self, h: Tensor) -> Tensor:
        return h if random.random() < 0.5 else h * 2


@pytest.mark.parametrize("make", [HidesItsOutput, Steps, DrawsInPython])
def test_what_only_the_model_itself_does_is_left_to_it(make: Callable[[], nn.Module]) -> None:
    net = dni_fx.transform(make(), X)
    assert net.dni.plan.frontend == "modules", net.dni.plan.tried
    assert failures(net, X, None) == {}
    with pytest.raises(CaptureError):
        dni_fx.transform(make(), X, frontend="fx")


def test_a_class_of_the_forward_is_written(tmp_path: Path) -> None:
    """By the command line, in another process, since the class is then no module's that can be imported."""
    (tmp_path / "net.py").write_text(
        "from collections import namedtuple\nfrom dataclasses import dataclass\nimport torch\nfrom torch import nn\n"
        "Pair = namedtuple('Pair', 'y h')\n@dataclass\nclass Box:\n    h: torch.Tensor\n"
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.b = nn.Sequential(*[nn.Linear(8, 8) for _ in range(4)])\n"
        "    def forward(self, x):\n        h = self.b(x)\n        return Pair(h.relu(), Box(h))\n"
        "example_inputs = torch.randn(4, 8)\n"
    )
    for command in (["rewrite", "net.py", "-o", "out"], ["check", "out"]):
        done = subprocess.run([sys.executable, "-m", "dni_fx.cli", *command], cwd=tmp_path, capture_output=True)
        assert done.returncode == 0, done.stderr


class Reentrant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.blocks = nn.Linear(6, 6), nn.ModuleList(Stack() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=True)
        return x


class Increments(Stack):
    n: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("n", torch.zeros(()))

    def middle(self, h: Tensor) -> Tensor:
        if self.training:
            self.n += 1
        return h


class Expanded(Stack):
    place: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("place", torch.arange(6.0).expand(4, 6))

    def middle(self, h: Tensor) -> Tensor:
        return h + self.place[:1]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of reentrant checkpoints under no_grad
@pytest.mark.filterwarnings("ignore:.*activation checkpointing is not in")
@pytest.mark.parametrize("make", [Reentrant, Increments, Expanded])
def test_what_was_refused_for_no_reason(make: Callable[[], nn.Module]) -> None:
    net = dni_fx.transform(make(), X)
    for _ in range(2):
        net(X).sum().backward()
    if make is not Expanded:  # load_state_dict cannot write to it either
        assert failures(net, X, None) == {}


def test_keywords_are_exported() -> None:
    class Any_(Stack):
        def forward(self, x: Tensor, **more: Tensor) -> Tensor:
            for name in sorted(more):
                x = x + more[name]
            return super().forward(x)

    net = dni_fx.transform(Any_(), X, example_kwargs={"a": X, "b": X}, frontend="export")
    net(X, b=X, a=X).sum().backward()


def test_what_cannot_be_cut_is_said() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2))
    with pytest.raises(CaptureError, match="ScriptModule"):
        dni_fx.transform(torch.jit.script(model), X)  # type: ignore[no-untyped-call]
    with pytest.raises(CaptureError, match="give the model that it was made from"):
        dni_fx.transform(torch.export.export(model, (X,)).module(), X)


# --------------------------------------------------------------------------------- the person's model is theirs
def test_a_load_that_fails_changes_nothing(tmp_path: Path) -> None:
    def make(classes: int) -> nn.Module:
        return nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, classes))

    dni_fx.save(dni_fx.transform(make(2), X), tmp_path / "net")
    model = make(3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(DniFxError, match="has shape"):
        dni_fx.load(tmp_path / "net", model=model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    half = make(2).half()
    dni_fx.load(tmp_path / "net", model=half)
    assert half[0].weight.dtype == torch.float16  # type: ignore[index]


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.stack = nn.Embedding(20, 6, max_norm=0.5), Stack()
        self.seen: list[Any] = []
        self.count = torch.zeros(())

    def forward(self, ids: Tensor) -> Tensor:
        h = self.stack(self.embed(ids))
        self.seen.append(h.detach())
        self.count.add_(1)
        return h


def test_nothing_of_the_model_is_changed() -> None:
    model = Remembers()
    weight, state = model.embed.weight.detach().clone(), random.getstate()
    heard: list[str] = []
    model.stack.register_forward_hook(lambda module, args, output: heard.append(type(output).__name__))
    net = dni_fx.transform(model, IDS)
    assert torch.equal(model.embed.weight, weight)
    assert model.seen == [] and model.count == 0 and random.getstate() == state
    assert "Proxy" not in heard
    heard.clear()
    net(IDS)
    assert heard == ["Tensor"]


def remembered(function: Any) -> Any:
    """As Hugging Face decorates methods: the cache is in a closure."""
    cached = lru_cache(maxsize=1)(function)
    return wraps(function)(lambda *args: cached(*args))


class Touchy:
    """Raises whatever is asked of it, as what stands for a missing package does."""

    def __getattr__(self, name: str) -> Any:
        raise ImportError(name)


touchy = Touchy()


class Caches(nn.Module):
    """Kept whole, for it reads self.training; its positions are remembered by the class."""

    @staticmethod
    @remembered
    def positions(rows: int) -> Tensor:
        return torch.arange(float(rows))[:, None]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.positions(x.shape[0]) * (1 if self.training else 0)


def test_no_stand_in_for_a_tensor_is_remembered() -> None:
    net = dni_fx.transform(nn.Sequential(Stack(), Caches(), nn.Linear(6, 2)), X)
    assert type(net(X).detach()) is Tensor
    assert failures(net, X, None) == {}
