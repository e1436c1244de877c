"""Everything here was wrong once: each test says in its first line what happened."""

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
from command_line import run
from cut_anywhere import plan_at
from nets import Moody, Stack
from oracle import failures
from random_nets import (
    Add,
    AddTo,
    Again,
    Conv,
    Drop,
    Linear,
    Norm,
    PlusTo,
    Program,
    RandomNet,
    ReluTo,
    Scale,
    random_inputs,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

import dni_fx
from dni_fx.capture.frontends import capture
from dni_fx.errors import CaptureError, DniFxError
from dni_fx.graph.flow import dataflow
from dni_fx.model.inputs import Inputs
from dni_fx.partition.positions import find_positions

pytestmark = pytest.mark.slow

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
    """Export gave the first of two arguments for both, where one tensor had been the example of both."""
    model = Language()
    net = dni_fx.transform(model, (), cuts=2, example_kwargs={"ids": IDS, "labels": IDS}, frontend="export")
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
    """A batch norm that was in eval mode ran in train mode in the rewritten net, and its statistics moved."""
    model = Frozen()
    model.norm.eval()
    net = dni_fx.transform(model, X, cuts=2, frontend=frontend)
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
    """Export fixed the branch of the example: a longer input went through the wrong one without an error."""
    model = Window()
    net = dni_fx.transform(model, IDS, cuts=2, frontend="export")
    net(IDS[:, :5])
    with pytest.raises(TypeError, match=r"another branch where not \['ids'\].size\(\)\[1\] <= 16"):
        net(torch.randint(0, 20, (4, 24)))


@dataclass
class Unregistered:
    logits: Tensor


class HidesItsOutput(Stack):
    """Verification saw no tensor in a dataclass that pytree does not know, and so compared nothing."""

    def drop(self, h: Tensor) -> Tensor:
        return F.dropout(h, 0.5, self.training)

    def forward(self, x: Tensor) -> Unregistered:
        return Unregistered(super().forward(x))

    def middle(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            shift = self.b(h)
        return self.drop(h) + shift


class Steps(Stack):
    """A graph does not set attributes: the count stood still."""

    def __init__(self) -> None:
        super().__init__()
        self.step, self.auxiliary = 0, torch.zeros(())

    def middle(self, h: Tensor) -> Tensor:
        self.step += 1
        self.auxiliary = (h * h).mean()
        return h


class DrawsInPython(Stack):
    """The graph held the one branch that had been drawn during the capture."""

    def middle(self, h: Tensor) -> Tensor:
        return h if random.random() < 0.5 else h * 2


@pytest.mark.parametrize("make", [HidesItsOutput, Steps, DrawsInPython])
def test_what_only_the_model_itself_does_is_left_to_it(make: Callable[[], nn.Module]) -> None:
    """A graph lost what its model does outside of tensors: each of these captures was another network."""
    net = dni_fx.transform(make(), X, cuts=2)
    assert net.dni.plan.frontend == "modules", net.dni.plan.tried
    assert failures(net, X, None) == {}
    with pytest.raises(CaptureError):
        dni_fx.transform(make(), X, frontend="fx")


def test_a_class_of_the_forward_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A saved model.py imported a class from a module that exists in the process alone that saved it."""
    (tmp_path / "net.py").write_text(
        "from collections import namedtuple\nfrom dataclasses import dataclass\nimport torch\nfrom torch import nn\n"
        "Pair = namedtuple('Pair', 'y h')\n@dataclass\nclass Box:\n    h: torch.Tensor\n"
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.b = nn.Sequential(*[nn.Linear(8, 8) for _ in range(4)])\n"
        "    def forward(self, x):\n        h = self.b(x)\n        return Pair(h.relu(), Box(h))\n"
        "example_inputs = torch.randn(4, 8)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "rewrite", "net.py", "--cuts", "2", "-o", "out") == 0
    done = subprocess.run([sys.executable, "-m", "dni_fx.cli", "check", "out"], capture_output=True)
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
    """These are right, and were refused."""
    net = dni_fx.transform(make(), X, cuts=2)
    for _ in range(2):
        net(X).sum().backward()
    if make is not Expanded:  # load_state_dict cannot write to it either
        assert failures(net, X, None) == {}


def test_keywords_are_exported() -> None:
    """Export of a forward with `**kwargs` fixed all sizes of its inputs."""

    class Any_(Stack):
        def forward(self, x: Tensor, **more: Tensor) -> Tensor:
            for name in sorted(more):
                x = x + more[name]
            return super().forward(x)

    net = dni_fx.transform(Any_(), X, cuts=2, example_kwargs={"a": X, "b": X}, frontend="export")
    net(X, b=X, a=X).sum().backward()


def test_the_error_for_a_model_that_cannot_be_cut() -> None:
    """The error came from inside of torch, without a hint what to do."""
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2))
    with pytest.raises(CaptureError, match="ScriptModule"):
        dni_fx.transform(torch.jit.script(model), X)  # type: ignore[no-untyped-call]
    with pytest.raises(CaptureError, match="give the model that it was made from"):
        dni_fx.transform(torch.export.export(model, (X,)).module(), X)


def test_a_load_that_fails_changes_nothing(tmp_path: Path) -> None:
    """A load that failed had already written some weights; a load that did not fail changed the dtype of the model."""

    def make(classes: int) -> nn.Module:
        return nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, classes))

    dni_fx.save(dni_fx.transform(make(2), X, cuts=2), tmp_path / "net")
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
    """The capture wrote to weights with a largest norm, to lists and tensors of the model; hooks got stand-ins."""
    model = Remembers()
    weight, state = model.embed.weight.detach().clone(), random.getstate()
    outputs: list[str] = []
    model.stack.register_forward_hook(lambda module, args, output: outputs.append(type(output).__name__))
    net = dni_fx.transform(model, IDS, cuts=2)
    assert torch.equal(model.embed.weight, weight)
    assert model.seen == [] and model.count == 0 and random.getstate() == state
    assert "Proxy" not in outputs
    outputs.clear()
    net(IDS)
    assert outputs == ["Tensor"]


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
    """A cache of the model kept a stand-in of the trace, and gave it to later calls."""
    net = dni_fx.transform(nn.Sequential(Stack(), Caches(), nn.Linear(6, 2)), X, cuts=2)
    assert type(net(X).detach()) is Tensor
    assert failures(net, X, None) == {}


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
    """The front end modules made cuts that a value passed by: through nn.Identity, no_grad, or a second output."""
    net = dni_fx.transform(make(), X, cuts=2, frontend="modules", unlock=unlock)
    for _ in range(3):
        pytree.tree_leaves(net(X))[0].sum().backward()
    assert all(crossing.steps == 3 for crossing in net.dni.crossings.values())
    assert failures(net, X, None) == {}


class OwnNames(nn.Module):
    """Children called like attributes of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.settings, self.flat, self.calling, self.recall = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.recall(torch.tanh(self.calling(torch.tanh(self.flat(torch.tanh(self.settings(x)))))))


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
    """Children named like our own attributes, a train() of the model, and arguments by place broke the rewrite."""
    net = dni_fx.transform(make(), args, cuts=2, frontend=frontend)
    assert failures(net, args, None) == {}
    net.train()(*args).sum().backward()


class Inner(Stack):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2.0 if self.training else 1.0)


def test_a_graph_without_a_place_to_cut_is_left_to_the_next() -> None:
    """`auto` took a graph in which no cut was legal, and tried no other front end."""
    net = dni_fx.transform(nn.Sequential(Inner()), X, cuts=2)
    assert net.dni.plan.frontend == "export"
    assert net.dni.plan.tried == ("fx: its graph has no legal cut",)


class Counts(Stack):
    calls = 0

    def middle(self, h: Tensor) -> Tensor:
        self.calls += 1
        return h * min(1.0, self.calls / 10)


def test_what_changes_from_call_to_call_is_not_captured() -> None:
    """A count that the model keeps in Python was fixed in the graph at its first value."""
    assert dni_fx.transform(Counts(), X, cuts=2).dni.plan.frontend == "modules"


class Looks(Stack):
    def forward(self, ids: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            h = nn.functional.embedding(ids, self.a.weight)
            h = self.b(h)
        return self.d(self.act(self.c(h.float())))


def test_an_error_in_an_autocast_block_does_not_leave_it_open() -> None:
    """After an error in an exported autocast block, autocast stayed on for the rest of the process."""
    net = dni_fx.transform(Looks(), torch.randint(0, 6, (4, 3)), cuts=2, frontend="export")
    with pytest.raises(IndexError):
        net(torch.full((4, 3), 99))
    assert not torch.is_autocast_enabled("cpu")
    assert (torch.rand(2, 2) @ torch.rand(2, 2)).dtype == torch.float32


class StateWrittenAbove(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.Linear(12, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = self.cell(torch.cat([x, h], 1))
        return self.out(torch.relu_(h)), h


def test_a_state_is_not_cut_off_before_it_is_written() -> None:
    """Cut between a state and an in-place write to it, the net returned the state as it was before the write."""
    inputs = torch.rand(4, 6), torch.rand(4, 6)
    with pytest.raises(DniFxError, match="a node above writes to cell, which is the state"):
        dni_fx.transform(StateWrittenAbove(), inputs, cuts=["cell"], state=True, frontend="fx")
    assert dni_fx.check(dni_fx.transform(StateWrittenAbove(), inputs, cuts=2, state=True), inputs)
    # torch.export returns the result of the write as the state.
    assert dni_fx.check(
        dni_fx.transform(StateWrittenAbove(), inputs, cuts=["cell"], state=True, frontend="export"), inputs
    )


FOUND = [
    Program((Linear(0, 4, 4), Add(0, 0), AddTo(3, 2), Linear(2, 4, 4), Add(3, 5), Linear(6, 4, 2)), (7,), "tensor"),
    Program((Linear(0, 4, 4), Norm(2, 4, 2), Again(3, 3), Linear(4, 4, 2)), (5,), "tensor"),
    Program((Linear(0, 4, 4), Norm(2, 4, 2), PlusTo(3, 3), Again(3, 3)), (4,), "tuple"),
    Program((Conv(1, 3, 3), Drop(2), Scale(0, 4, 2), ReluTo(3)), (2,), "dict"),
]


@pytest.mark.parametrize("frontend", ["auto", pytest.param("export", marks=pytest.mark.slow)])
@pytest.mark.parametrize("program", FOUND, ids=range(len(FOUND)))
def test_what_was_found_before(program: Program, frontend: str) -> None:
    """Found by random nets: gradients or values at some legal place were wrong."""
    net = RandomNet(program)
    inputs = random_inputs(net)
    module, used, _ = capture(net, Inputs(inputs), frontend)
    for place in find_positions(dataflow(module.graph)):
        if not place.obstacle:
            plan = plan_at(module.graph, [place], used)
            for unlock in ("none", "backward"):
                rewritten = dni_fx.transform(net, inputs, cuts=plan, frontend=frontend, unlock=unlock)
                report = dni_fx.check(rewritten, inputs)
                assert report, (place.after, unlock, report)
