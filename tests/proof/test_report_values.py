"""The check of models with unusual gradients, inputs and results."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dni_fx
from dni_fx.errors import DniFxError
from dni_fx.runtime.module import DecoupledModule

X = torch.rand(6, 4, generator=torch.Generator().manual_seed(0))
FRONTENDS = ("fx", "export", "modules")


class Net(nn.Module):
    """A small net whose result is a function of its last activation."""

    def __init__(self, result: Callable[[Tensor], Any] = lambda y: y) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.below, self.middle, self.above = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.result = result

    def forward(self, x: Tensor) -> Any:
        return self.result(self.above(torch.relu(self.middle(torch.tanh(self.below(x))))))


class Words(nn.Module):
    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.middle, self.above = embedding, nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, words: Tensor) -> Tensor:
        h = self.embedding(words)
        return self.above(torch.relu(self.middle(h.flatten(1, -2).sum(1) if h.dim() > 2 else h)))


def failed(net: DecoupledModule, inputs: Any) -> list[Any]:
    return [check for check in dni_fx.check(net, inputs).checks if not check.passed]


@pytest.mark.parametrize("unlock", ["backward", "none"])
@pytest.mark.parametrize("kind", ["bag", "rows"])
def test_sparse_gradients(kind: str, unlock: str) -> None:
    embedding = (nn.EmbeddingBag if kind == "bag" else nn.Embedding)(20, 5, sparse=True)
    words = torch.arange(18).reshape(6, 3) % 7
    net = dni_fx.transform(Words(embedding), words, cuts=2, frontend="modules", unlock=unlock)
    assert not failed(net, words)


RESULTS: dict[str, Callable[[Tensor], Any]] = {
    "scalar loss": lambda y: y.square().mean(),
    "loss of shape (1,)": lambda y: y.square().mean().reshape(1),
    "a loss for each row": lambda y: y.square().mean(1),
    "dict": lambda y: {"loss": y.square().mean(), "logits": y},
    "integers and truth values": lambda y: (y, y.argmax(1), y > 0),
    "None": lambda y: (None, {"none": None, "y": y}),
    "complex": lambda y: torch.complex(y, 2 * y),
    "NaN": lambda y: (y, y.detach() * float("nan")),
    "inf": lambda y: (y, y.detach().abs() * float("inf")),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_of_other_kinds(name: str) -> None:
    net = dni_fx.transform(Net(RESULTS[name]), X, cuts=2)
    assert not failed(net, X)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_inputs_that_are_not_finite_have_a_clear_error(value: str) -> None:
    net = dni_fx.transform(Net(), X, cuts=2)
    inputs = X.clone()
    inputs[1, 2] = float(value)
    with pytest.raises(DniFxError, match=rf"the example has {'NaN' if value == 'nan' else 'inf'} .*give finite inputs"):
        dni_fx.check(net, inputs)


def test_gradients_that_are_not_finite_have_a_clear_error() -> None:
    net = dni_fx.transform(Net(lambda y: (y - y).sqrt()), X, cuts=2, verify=False)
    with pytest.raises(DniFxError, match="a gradient that is not finite on these inputs"):
        dni_fx.check(net, X)


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("classes", [None, 3])
def test_an_empty_batch(frontend: str, classes: int | None) -> None:
    net = dni_fx.transform(Net(), X, cuts=2, frontend=frontend, classes=classes)
    assert not failed(net, X[:0])
