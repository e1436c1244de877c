"""Labels for the synthesizers from an argument of the model, or from an entry of a dict among the arguments."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dni_fx
from dni_fx.errors import DniFxError
from dni_fx.runtime.context_source import ContextSource, check_source, find_source

X, Y = torch.randn(8, 6), torch.arange(8) % 3
FRONTENDS = ["fx", "export", "modules"]


class Labelled(nn.Module):
    """Takes labels, which it uses for a weight alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: Tensor, labels: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        return self.net(x) * scale


class OfDict(Labelled):
    """Takes a batch as one dict."""

    def forward(self, batch: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        return self.net(batch["x"])


def made(model: nn.Module, inputs: Any, kwargs: Any = None, **options: Any) -> Any:
    arguments = {"cuts": ["net.1"], "loss": "cross_entropy", "verify": False} | options
    return dni_fx.transform(model, inputs, example_kwargs=kwargs, **arguments).train()


def gradients(net: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
    net.zero_grad()
    F.cross_entropy(net(*args, **kwargs), Y).backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def same(some: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return some.keys() == other.keys() and all(torch.equal(some[name], other[name]) for name in some)


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_an_argument_of_the_model(frontend: str) -> None:
    net = made(Labelled(), X, {"labels": Y}, context_from="labels", frontend=frontend)
    given = gradients(net, X, labels=Y, dni_context=Y)
    assert same(gradients(net, X, labels=Y), given)
    assert same(gradients(net, X, Y), given)
    other = made(Labelled(), X, {"labels": Y}, context_from="labels", frontend=frontend, classes=3, synthesizer="mlp")
    other(X, labels=Y).sum().backward()
    with pytest.raises(DniFxError, match="dni_context"):
        other(X, labels=None) if frontend == "modules" else other(X, labels=Y.float() + 0.5)


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_a_key_of_a_dict(frontend: str) -> None:
    batch = {"x": X, "y": Y}
    plain = made(OfDict(), (batch,), frontend=frontend)
    given = gradients(plain, batch, dni_context=Y)
    for name in ("y", "batch.y"):
        assert same(gradients(made(OfDict(), (batch,), context_from=name, frontend=frontend), batch), given)


def test_copies_and_folders_keep_it(tmp_path: Any) -> None:
    net = made(Labelled(), X, {"labels": Y}, context_from="labels")
    given = gradients(net, X, Y)
    dni_fx.save(net, tmp_path / "net")
    copies = [copy.deepcopy(net), pickle.loads(pickle.dumps(net)), dni_fx.load(tmp_path / "net")]
    copies.append(dni_fx.load(tmp_path / "net", model=Labelled()))
    for one in copies:
        assert same(gradients(one.train(), X, labels=Y), given)


def test_eval_mode_and_a_given_context() -> None:
    """A context that the call gives comes first, also None; eval mode needs none."""
    net = made(Labelled(), X, {"labels": Y}, context_from="labels")
    given = gradients(net, X, Y)
    assert not same(gradients(net, X, Y, dni_context=Y.roll(1)), given)
    with pytest.raises(DniFxError, match="the exits need the target"):
        net(X, Y, dni_context=None)
    assert net.eval()(X, Y).shape == (8, 3)


def test_what_has_no_source() -> None:
    with pytest.raises(DniFxError, match=r"context_from='target': forward has no such argument.*there are x, labels"):
        made(Labelled(), X, {"labels": Y}, context_from="target")
    with pytest.raises(DniFxError, match="context_from='labels' is for synthesizers that take labels"):
        made(Labelled(), X, {"labels": Y}, context_from="labels", loss=None)
    with pytest.raises(DniFxError, match="context_from=3"):
        made(Labelled(), X, context_from=3)


def test_paths() -> None:
    model = OfDict()
    assert check_source("y", model.forward, ({"x": X, "y": Y},), {}) == "batch.y"
    assert find_source("batch.y", model.forward) == ContextSource("batch", 0, "y")
    assert find_source("scale", Labelled().forward) == ContextSource("scale", None, "")
    assert ContextSource("batch", 0, "y").of((X,), {}) is None
    assert ContextSource("scale").of((X,), {}) is None
