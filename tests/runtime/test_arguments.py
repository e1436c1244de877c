"""Calls with other arguments than a graph was made for, and the ways out that the error gives."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dni_fx
from dni_fx.errors import CaptureError

GENERATOR = torch.Generator().manual_seed(0)
X, OTHER = torch.randn(6, 12, generator=GENERATOR), torch.randn(6, 12, generator=GENERATOR)
LABELS = torch.randint(0, 4, (6,), generator=GENERATOR)


class Mode:
    """No value that a graph can hold."""


PLAIN, NEGATIVE = Mode(), Mode()


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 4)

    def logits(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


class Scaled(Base):
    def forward(self, x: Tensor, tau: Any = 1.0) -> Tensor:
        return self.logits(x) / tau


class Labelled(Base):
    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        y = self.logits(x)
        return y if labels is None else nn.functional.cross_entropy(y, labels)


class Branching(Base):
    def forward(self, x: Tensor, double: bool = False, kind: str = "plain", power: int = 1) -> Tensor:
        y = self.logits(x) ** power
        return (2 * y if double else y) * (1 if kind == "plain" else -1)


class Pair(Base):
    def forward(self, parts: Any) -> Tensor:
        return self.logits(parts[0] + parts[1])


class Batch(Base):
    def forward(self, batch: Any) -> Tensor:
        return self.logits(batch["x"] + batch["y"])


class Moded(Base):
    def forward(self, x: Tensor, mode: Mode = PLAIN) -> Tensor:
        return self.logits(x) if mode is PLAIN else -self.logits(x)


# The model, its example, a call, and what the error says about them.
FIXED: dict[str, tuple[type[Base], tuple[Any, ...], tuple[Any, ...], str]] = {
    "float": (Scaled, (X,), (X, 0.5), r"'tau' was 1.0 when .* and is 0.5 now.*a tensor for tau"),
    "tensor for a float": (Scaled, (X,), (X, torch.tensor(0.5)), r"'tau' was 1.0 .* is a tensor of shape \[\] now"),
    "labels for None": (Labelled, (X,), (X, LABELS), r"'labels' was None .* is a tensor of shape \[6\] now"),
    "None for labels": (Labelled, (X, LABELS), (X, None), "'labels' was a tensor .* is None now"),
    "no labels": (Labelled, (X, LABELS), (X,), "'labels' was a tensor .* is (None|not given) now"),
    "bool": (Branching, (X,), (X, True), "'double' was False .* is True now"),
    "str": (Branching, (X,), (X, False, "other"), "'kind' was 'plain' .* is 'other' now"),
    "int": (Branching, (X, False, "plain", 2), (X,), "'power' was 2 .* is 1 now"),
    "dict": (Batch, ({"x": X, "y": OTHER},), ({"x": X},), "'batch' was a dict with the keys 'x', 'y' .* keys 'x' now"),
    "list": (Pair, ([X, OTHER],), ([X],), "'parts' was a list.* of 2 when .* is a list of 1 now"),
}


# By export only three, which take a second each; see also test_flat.py.
@pytest.mark.parametrize(
    ("frontend", "case"),
    [("fx", case) for case in FIXED] + [("export", case) for case in ("float", "no labels", "list")],
)
def test_another_argument(frontend: str, case: str, tmp_path: Path) -> None:
    """One line; the same from a net that was loaded; the captured call still runs."""
    cls, example, call, message = FIXED[case]
    net = dni_fx.transform(cls(), example, cuts=2, frontend=frontend)
    dni_fx.save(net, tmp_path / "saved")
    for same in (net, dni_fx.load(tmp_path / "saved", model=cls())):
        with pytest.raises(TypeError, match=message) as error:
            same(*call)
        assert 'frontend="modules"' in str(error.value) and error.value.__cause__ is None
        same(*example)


@pytest.mark.filterwarnings("ignore:the model returns no loss in this call")
@pytest.mark.parametrize("case", [case for case in FIXED if case not in ("dict", "list")])  # no calls of the model
def test_the_ways_out(case: str) -> None:
    """The front end modules takes both calls; so does a graph for an example like the call."""
    cls, example, call, message = FIXED[case]
    model = cls()
    ways = [
        (dni_fx.transform(model, example, cuts=2, frontend="modules"), (example, call)),
        (dni_fx.transform(model, call, cuts=2, frontend="fx"), (call,)),
    ]
    if "a tensor for" in message:
        both = (X, torch.tensor(2.0)), (X, torch.tensor(0.5))
        ways.append((dni_fx.transform(model, both[0], cuts=2, frontend="fx"), both))
    for net, calls in ways:
        for args in calls:
            result = net(*args)
            torch.testing.assert_close(result, model(*args))
            result.sum().backward()


def test_exits_without_labels_give_a_warning() -> None:
    """The model's own loss is what they end in; without it, nothing is cut."""
    cls, example, call, _ = FIXED["no labels"]
    net = dni_fx.transform(cls(), example, cuts=2, frontend="modules").train()
    assert net.dni.exits
    with pytest.warns(UserWarning, match="returns no loss in this call, in train mode, so its exits have no gradients"):
        net(*call)


def test_calls_that_the_graph_takes() -> None:
    """Entries that the model does not use; a number in the place of a tensor."""
    net = dni_fx.transform(Batch(), ({"x": X, "y": OTHER},), cuts=2, frontend="fx")
    net({"x": X, "y": OTHER, "z": None})
    net = dni_fx.transform(Pair(), ([X, OTHER],), cuts=2, frontend="fx")
    torch.testing.assert_close(net((X, OTHER, X)), net.dni_original([X, OTHER]))
    model = Scaled()
    net = dni_fx.transform(model, (X, torch.tensor(1.0)), cuts=2, frontend="fx")
    torch.testing.assert_close(net(X, 0.5), model(X, 0.5))
    net = dni_fx.transform(model, (X, float("nan")), cuts=2, frontend="fx", verify=False)
    net(X, float("nan"))


def test_an_error_of_the_model_stays() -> None:
    net = dni_fx.transform(Labelled(), (X, LABELS), cuts=2, frontend="fx")
    with pytest.raises(IndexError, match="out of bounds"):
        net(X, LABELS + 10)
    with pytest.raises(TypeError, match="unexpected keyword argument 'other'"):
        net(X, LABELS, other=1)


def test_a_value_that_no_graph_holds() -> None:
    """By default such an argument is left out of the graph; in the example it needs another front end."""
    net = dni_fx.transform(Moded(), (X,), cuts=2, frontend="fx")
    with pytest.raises(TypeError, match=r"'mode' was not in the graph .*Mode object .* now"):
        net(X, NEGATIVE)
    with pytest.raises(CaptureError, match=r"argument 'mode' is .*Mode object .*, which no graph holds"):
        dni_fx.transform(Moded(), (X, NEGATIVE), cuts=2, frontend="fx")
    model = Moded()
    net = dni_fx.transform(model, (X, NEGATIVE), cuts=2)
    torch.testing.assert_close(net(X, NEGATIVE), model(X, NEGATIVE))
