"""Arguments of a model: by place, by name, nested; inputs that do not fit."""

from typing import Any

import pytest
import torch
from nets import Arguments, Base, Dicts
from torch import Tensor, nn

import dni_fx
from dni_fx.errors import DniFxError

torch.manual_seed(0)  # unlucky weights let no gradient through, and a wrong one would not be seen
X = torch.rand(4, 6)

ARGUMENTS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("plain", (X,), {}),
    ("by-name", (), {"x": X}),
    ("none-given", (X, None), {}),
    ("mask", (X, torch.rand(4, 6)), {}),
    ("mask-by-name", (X,), {"mask": torch.rand(4, 6)}),
    ("all-by-name", (), {"mask": torch.rand(4, 6), "x": X}),
    ("flag", (X,), {"double": True}),
    ("text", (X, None), {"mode": "shifted", "double": True}),
    ("nested", (X,), {"pair": (torch.rand(4, 6), {"scale": torch.rand(4, 6)})}),
]


@pytest.mark.parametrize(("args", "kwargs"), [c[1:] for c in ARGUMENTS], ids=[c[0] for c in ARGUMENTS])
@pytest.mark.parametrize("unlock", ["none", "backward"])
def test_arguments(unlock: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    model = Arguments()
    net = dni_fx.transform(model, args, cuts=2, example_kwargs=kwargs, unlock=unlock, classes=3)
    model.eval()
    net.eval()
    torch.testing.assert_close(net(*args, **kwargs), model(*args, **kwargs), rtol=0, atol=0)
    net.train()
    net(*args, **kwargs, dni_context=torch.tensor([0, 1, 2, 0])).sum().backward()
    assert list(net.dni.plan.inputs)


class Star(Base):
    def forward(self, *tensors: Tensor, **named: Tensor) -> Tensor:
        return self.above(self.a(tensors[0] + tensors[1]) + named["extra"])


class OrderOfNames(Base):
    """An argument that is called like a node."""

    def forward(self, relu: Tensor, a: Tensor) -> Tensor:
        return self.above(self.a(relu)) + a


SHAPES: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = [
    (Star(), (X, X + 1), {"extra": X}),
    (Dicts(), ({"x": X, "mask": torch.rand(4, 6)},), {}),
    (OrderOfNames(), (X, X), {}),
    (OrderOfNames(), (), {"a": X, "relu": X + 1}),
]


@pytest.mark.parametrize(("model", "args", "kwargs"), SHAPES, ids=["star", "dicts", "names", "names-swapped"])
def test_signatures(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    net = dni_fx.transform(model, args, cuts=2, example_kwargs=kwargs)
    model.eval()
    net.eval()
    torch.testing.assert_close(net(*args, **kwargs), model(*args, **kwargs), rtol=0, atol=0)
    net.train()
    torch.testing.assert_close(net(*args, **kwargs), model(*args, **kwargs), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        ((), {}, "missing"),
        ((X, None, X), {}, "too many"),
        ((X,), {"masc": X}, "masc"),
        ((X,), {"x": X}, "x"),
        ((torch.rand(4, 7),), {}, "4x7"),
        (("text",), {}, "does not run"),
    ],
)
def test_inputs_that_do_not_fit(args: Any, kwargs: Any, text: str) -> None:
    with pytest.raises(DniFxError, match=text) as caught:
        dni_fx.transform(Arguments(), args, example_kwargs=kwargs)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
