"""The plain values that a model's code reads while it is traced."""

import argparse
import functools
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from dni_fx.capture.attributes import recorded_reads

X = torch.rand(3, 4)


@dataclass
class Config:
    tau: float = 1.0
    lr: float = 0.1


class AttributeDict(dict[str, Any]):
    """As of Lightning: the entries are attributes, too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Slots:
    __slots__ = ("lr", "tau")

    def __init__(self) -> None:
        self.tau, self.lr = 1.0, 0.1


class Net(nn.Module):
    """Runs a function, in which a case reads what it is about."""

    in_class = 2.0

    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run
        self.child = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)
        self._tau, self.lr, self.cache, self.cached_sizes = 1.0, 0.1, None, {}
        self.sizes, self.hp = [1.0, 2.0], {"tau": 1.0, "lr": 0.1, "deep": {"tau": 1.0}}
        self.config, self.slots, self.entries = Config(), Slots(), AttributeDict(tau=1.0, lr=0.1)
        self.namespace, self.args = types.SimpleNamespace(tau=1.0, lr=0.1), argparse.Namespace(tau=1.0, lr=0.1)
        self.act = torch.tanh
        self.calls, self.held = 0, {"t": torch.ones(1)}
        self.partial = functools.partial(torch.clamp, min=0.1)

    @property
    def tau(self) -> float:
        return self._tau

    def forward(self, x: Tensor) -> Tensor:
        return self.child(self.run(self, x))

    def count(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x

    def remember(self, x: Tensor) -> Tensor:
        if self.cache is None:
            self.cache = (1, 2)
        if 3 not in self.cached_sizes:
            self.cached_sizes[3] = 3
        return x * self.cached_sizes[3]


CASES: dict[str, tuple[Callable[[Any, Tensor], Tensor], list[str]]] = {
    "property": (lambda m, x: x * m.tau, ["_tau"]),
    "class": (lambda m, x: x * m.in_class, ["in_class"]),
    "list": (lambda m, x: x * m.sizes[1], ["sizes"]),
    "dict": (lambda m, x: x * m.hp["tau"], ["hp['tau']"]),
    "get": (lambda m, x: x * m.hp.get("tau") * m.hp.get("none", 1), ["hp['tau']", "hp['none']"]),
    "nested": (lambda m, x: x * m.hp["deep"]["tau"], ["hp['deep']['tau']"]),
    "items": (lambda m, x: x * len([k for k, _ in m.hp["deep"].items()]), ["hp['deep']"]),
    "keywords": (lambda m, x: (lambda tau: x * tau)(**m.hp["deep"]), ["hp['deep']", "hp['deep']['tau']"]),
    "dataclass": (lambda m, x: x * m.config.tau, ["config.tau"]),
    "slots": (lambda m, x: x * m.slots.tau, ["slots.tau"]),
    "attribute dict": (lambda m, x: x * m.entries.tau, ["entries['tau']", "entries.tau"]),
    "item of a subclass": (lambda m, x: x * m.entries["tau"], ["entries['tau']"]),
    "get of a subclass": (lambda m, x: x * m.entries.get("tau"), ["entries"]),
    "SimpleNamespace": (lambda m, x: x * m.namespace.tau, ["namespace.tau"]),
    "Namespace": (lambda m, x: x * m.args.tau, ["args.tau"]),
    "function": (lambda m, x: m.act(x), ["act"]),
    "partial": (lambda m, x: m.partial(x), ["partial"]),
    "absent": (lambda m, x: x if getattr(m, "flag", None) is None else -x, ["flag"]),
    "of a child": (lambda m, x: x * m.drop.p, ["drop.p"]),
    "written": (lambda m, x: m.count(x), []),
    "written if absent": (lambda m, x: m.remember(x), []),
    "tensors": (lambda m, x: x * m.held["t"], []),
}


def names_of(model: nn.Module, trace: Callable[[nn.Module], object], *, code: bool = False) -> list[str]:
    """The names of the values that are read; and of the code, children and hooks, if `code` says so."""
    with recorded_reads(model) as reads:
        trace(model)
    is_code = [read.is_structure or read.steps[-1][0] == "code" for read in reads]
    return [str(read) for read, of_code in zip(reads, is_code, strict=True) if str(read) != "run" and of_code is code]


@pytest.mark.parametrize("case", CASES)
def test_what_is_read(case: str) -> None:
    """Nothing but the values that the code reads: not the learning rate beside them."""
    run, names = CASES[case]
    assert names_of(Net(run), fx.Tracer().trace) == names


def test_export_reads_what_layers_read() -> None:
    """torch.export runs the code of all layers; the branches of torch.cond are traced by torch.compile."""

    def run(m: Net, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda h: h * m.lr, lambda h: -h, (m.drop(x),))

    found = names_of(Net(run), lambda m: torch.export.export(m, (X,), strict=False))
    assert {"drop.p", "drop.inplace", "drop.training"} <= set(found) and "config.lr" not in found


def test_export_sets_back_what_forward_writes() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        m.config.tau += 1
        return m.remember(m.count(x)) * m.config.tau

    assert names_of(Net(run), lambda m: torch.export.export(m, (X,), strict=False)) == []


def test_a_config_that_modules_share() -> None:
    """Each module may get another config later, so the value counts for each module that reads it."""
    outer = Net(lambda m, x: m.inner(x) * m.config.tau * m.hp["tau"])
    outer.inner = inner = Net(lambda m, x: x * m.config.tau * m.hp["tau"])
    inner.config, inner.hp = outer.config, outer.hp
    names = [name for name in names_of(outer, fx.Tracer().trace) if not name.endswith("run")]
    assert names == ["inner.config.tau", "inner.hp['tau']", "config.tau", "hp['tau']"]


def test_a_leaf_acts_when_it_runs() -> None:
    assert names_of(Net(lambda m, x: m.drop(x)), fx.Tracer().trace) == []


@pytest.mark.parametrize("error", [None, RuntimeError("in forward")])
def test_everything_is_as_before(error: Exception | None) -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        m.hp["new"] = m.config.tau * m.hp["tau"] * m.namespace.tau
        m.namespace.new = 3
        if error is not None:
            raise error
        return x

    model = Net(run)
    held = model.hp, model.config, model.namespace
    if error is None:
        names_of(model, fx.Tracer().trace)
    else:
        with pytest.raises(RuntimeError, match="in forward"):
            names_of(model, fx.Tracer().trace)
    assert (model.hp, model.config, model.namespace) == held and model.hp["new"] == 1.0 and model.namespace.new == 3
    assert type(model.hp) is dict and type(model.namespace) is types.SimpleNamespace
    for cls in (nn.Module, Config):
        assert "__getattribute__" not in vars(cls)


TAU = 1.0
HP = {"tau": 1.0, "lr": 0.1}
CONFIG = Config()


def scaled(x: Tensor) -> Tensor:
    return x * TAU


class ReadsGlobals(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return scaled(x) * HP["tau"] * CONFIG.tau * torch.pi


def test_global_variables() -> None:
    found = names_of(ReadsGlobals(), fx.Tracer().trace)
    assert {name.split(" (")[0] for name in found} == {"TAU", "HP['tau']", "CONFIG.tau", "scaled"}
    assert all(f"(a global variable of {__name__})" in name for name in found)
