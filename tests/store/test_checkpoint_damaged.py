"""A checkpoint that does not fit changes nothing; the message says in plain words what differs."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nets import two_layers
from torch import nn
from torch.utils import _pytree as pytree

import dni_fx
from dni_fx.errors import DniFxError

X = torch.rand(6, 8, generator=torch.Generator().manual_seed(0))


class Run:
    """A net, and what trains it."""

    def __init__(self, model: nn.Module | None = None, **options: Any) -> None:
        model = two_layers(8) if model is None else model
        self.optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        chosen: dict[str, Any] = {"cuts": ["1"], "synthesizer": "lstm", "optimizer": self.optimizer} | options
        self.net = dni_fx.transform(model, X, verify=False, **chosen).train()
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2)
        self.average = nn.Linear(2, 2)
        self.others = {"optimizer": self.optimizer, "scheduler": self.scheduler, "average": self.average}
        self.step()

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.net(X).square().mean().backward()
        self.optimizer.step()
        self.scheduler.step()

    def state(self) -> list[Any]:
        states: list[Any] = [self.net.state_dict(), dict(self.net.named_buffers()), self.net.dni.progress()]
        states += [other.state_dict() for other in self.others.values()]
        states += [torch.get_rng_state(), torch.from_numpy(np.random.get_state()[1].astype(int)), random.getstate()]
        return [leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in pytree.tree_leaves(states)]


def same(before: list[Any], after: list[Any]) -> bool:
    """NaN equals NaN here: a metric is NaN before it is measured."""
    return len(before) == len(after) and all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(before, after, strict=True)
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    run = Run()
    path = tmp_path_factory.mktemp("saved") / "run.pt"
    dni_fx.save_checkpoint(path, run.net, epoch=3, **run.others)
    return path


def without(*keys: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return change


def with_value(value: Any, *keys: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


CROSSING = "cut0__1"
DAMAGE: list[tuple[Callable[[Any], None], str]] = [
    *((without(part), part) for part in ("net", "kind", "buffers", "progress", "others", "random", "optimizer")),
    *((with_value([1], part), part) for part in ("net", "kind", "buffers", "progress", "others", "random")),
    (without("net", "2.bias"), "2.bias was not there, and is"),
    (with_value(torch.zeros(9), "net", "2.bias"), r"2.bias was \[9\] float32, and is \[3\] float32"),
    (with_value(torch.zeros(3, dtype=torch.int64), "net", "2.bias"), "2.bias was .* int64"),
    (with_value("a", "net", "2.bias"), "2.bias was no tensor"),
    (with_value(torch.zeros(9), "net", "other"), r"other was \[9\] float32, and is not there"),
    (without("progress", CROSSING), CROSSING),
    (without("progress", CROSSING, "steps"), CROSSING),
    (with_value("a", "progress", CROSSING, "steps"), CROSSING),
    (with_value((1, 2), "progress", CROSSING, "carried"), "the net does not take the state"),
    (without("buffers", f"dni.{CROSSING}.measured"), "measured"),
    (with_value(3, "buffers", f"dni.{CROSSING}.measured"), "measured"),
    (with_value(torch.zeros(3), "buffers", "no.such"), "the net does not take the state"),
    (with_value(3, "others", "optimizer"), "optimizer"),
    (without("others", "optimizer", "state"), "optimizer"),
    (without("others", "optimizer", "param_groups"), "optimizer"),
    (with_value([], "others", "optimizer", "param_groups"), "optimizer does not take"),
    (with_value(3, "others", "optimizer", "state", 0), "optimizer has a wrong entry 0"),
    (with_value(torch.zeros(2), "others", "optimizer", "state", 0, "exp_avg"), r"exp_avg of shape \[2\] for parameter"),
    (with_value(3, "others", "scheduler"), "scheduler does not take the state"),
    (with_value({}, "others", "average"), "average does not take the state"),
    (without("others", "scheduler"), "no state to load into scheduler="),
    (without("random", "numpy"), "the net does not take the state"),
    (with_value(torch.zeros(3), "random", "torch"), "the net does not take the state"),
    (with_value((1, 2), "random", "python"), "the net does not take the state"),
]


@pytest.fixture(scope="module")
def other() -> Run:
    run = Run()
    run.step()
    return run


@pytest.mark.parametrize("number", range(len(DAMAGE)))
def test_damage_changes_nothing(number: int, saved: Path, other: Run, tmp_path: Path) -> None:
    change, message = DAMAGE[number]
    content = torch.load(saved, weights_only=True)
    change(content)
    torch.save(content, tmp_path / "run.pt")
    before = other.state()
    with pytest.raises(DniFxError, match=message) as caught:
        dni_fx.load_checkpoint(tmp_path / "run.pt", other.net, **other.others)
    assert "\n" not in str(caught.value)
    assert same(before, other.state())


def test_the_last_object_that_fails_changes_nothing(saved: Path) -> None:
    """A module takes the tensors that fit before it raises the error of the others."""
    run = Run()
    run.step()
    run.others["average"] = nn.ModuleDict({"a": nn.Linear(2, 2)})
    run.others["average"].register_parameter("bias", nn.Parameter(torch.ones(2)))
    before = run.state()
    with pytest.raises(DniFxError, match="average does not take the state"):
        dni_fx.load_checkpoint(saved, run.net, **run.others)
    assert same(before, run.state())
    del run.others["average"]
    before = run.state()
    dni_fx.load_checkpoint(saved, run.net, **run.others)
    assert not same(before, run.state())


def test_objects_of_other_kinds(saved: Path) -> None:
    run = Run()
    run.step()
    parameters = list(run.net.parameters())
    wrong: list[tuple[str, Any, str]] = [
        ("optimizer", torch.optim.SGD(run.net.parameters(), 0.1), "loaded state dict has 2 parameter groups"),
        ("optimizer", torch.optim.Adam([{"params": parameters[1:]}, {"params": parameters[:1]}]), "group 0"),
        ("scheduler", torch.optim.lr_scheduler.ExponentialLR(run.optimizer, 0.9), "of a StepLR, and this is a Exp"),
        ("scheduler", run.optimizer, "scheduler does not take"),
        ("epoch", run.scheduler, "epoch does not take|no state"),
    ]
    for name, value, message in wrong:
        before = run.state()
        with pytest.raises(DniFxError, match=message):
            dni_fx.load_checkpoint(saved, run.net, **{"optimizer": run.optimizer, name: value})
        assert same(before, run.state())


def test_a_checkpoint_of_another_net_says_what_differs(saved: Path, tmp_path: Path) -> None:
    class Other(nn.Sequential):
        pass

    wide = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 9))
    relu = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3), nn.ReLU())
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (Other(*two_layers(8)), {}, "the model was a Sequential, and is a Other"),
        (wide, {}, r"2\.bias was \[3\] float32, and is \[9\] float32"),
        (relu, {}, "operation 4 of its forward was output, and is _3"),
        (None, {"training": dni_fx.Training(every=3)}, "every was 1, and is 3"),
    ]
    for model, options, message in cases:
        run = Run(model, **options)
        with pytest.raises(DniFxError, match=f"of another net: {message}"):
            dni_fx.load_checkpoint(saved, run.net)


def test_a_checkpoint_of_an_earlier_version_is_read(saved: Path, tmp_path: Path) -> None:
    """Without the classes of the objects and the names of the nodes, and with the tensors among the properties."""
    content = torch.load(saved, weights_only=True)
    del content["signatures"], content["kind"]["nodes"]
    content["kind"]["tensors"] = {k: (tuple(v.shape), v.dtype) for k, v in content["net"].items()}
    torch.save(content, tmp_path / "run.pt")
    run = Run()
    assert dni_fx.load_checkpoint(tmp_path / "run.pt", run.net, **run.others) == {"epoch": 3}
    assert all(torch.equal(v, run.net.state_dict()[k]) for k, v in content["net"].items())
