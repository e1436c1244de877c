"""Saved folders of models whose classes and files have the names of other things in `model.py`."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import dni_fx

X = torch.rand(6, 4, generator=torch.Generator().manual_seed(0))
LAYER = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.cls = nn.Linear(4, 4), 2

    def forward(self, x):
        return self.cls * torch.{function}(self.linear(x)) if self.training else x
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, ...]]:
    names = ("Block", "source", "other_blocks")
    for name, function in zip(names, ("tanh", "sigmoid", "relu"), strict=True):
        (tmp_path / f"{name}.py").write_text(LAYER.format(function=function))
    monkeypatch.syspath_prepend(tmp_path)
    yield names
    for name in names:
        sys.modules.pop(name, None)


def test_classes_of_one_name_in_files_with_names_of_model_py(files: tuple[str, ...], tmp_path: Path) -> None:
    model = nn.Sequential(*(importlib.import_module(name).Block() for name in files), nn.Linear(4, 3))
    own = type("Block", (nn.Sequential,), {})(*model)
    net = dni_fx.transform(own, X, cuts=["1"], frontend="fx")
    dni_fx.save(net, tmp_path / "net")
    again = dni_fx.load(tmp_path / "net")
    assert type(again).__name__ == "Block"
    torch.testing.assert_close(again(X), net(X))


@pytest.mark.parametrize("name", ["torch", "dni_fx", "nn", "class", "super", "Tensor"])
def test_the_class_of_a_model_may_have_any_name(name: str, tmp_path: Path) -> None:
    model = type(name, (nn.Sequential,), {})(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    net = dni_fx.transform(model, X, cuts=["1"], frontend="fx")
    dni_fx.save(net, tmp_path / "net")
    torch.testing.assert_close(dni_fx.load(tmp_path / "net")(X), net(X))


class MakesATensor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.below, self.above = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.above(torch.tanh(self.below(x))) + torch.arange(3.0)


@pytest.mark.parametrize("frontend", ["fx", "export", "modules"])
def test_a_tensor_that_forward_makes_is_saved(frontend: str, tmp_path: Path) -> None:
    model = MakesATensor()
    net = dni_fx.transform(model, X, cuts=["below"], frontend=frontend)
    expected = net(X)
    net.eval()(X)
    assert not list(model.buffers())  # the constants of the graph are not the model's
    dni_fx.save(net.train(), tmp_path / "net")
    torch.testing.assert_close(dni_fx.load(tmp_path / "net", model=model.train())(X), expected)
