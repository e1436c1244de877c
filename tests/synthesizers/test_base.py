"""Synthesizers that users write: which are taken, and which are refused."""

from typing import Any

import pytest
import torch
from nets import two_layers
from torch import Tensor, nn

import dni_fx
from dni_fx.errors import DniFxError
from dni_fx.synthesizers import registry
from dni_fx.synthesizers.base import Activation, Synthesizer
from dni_fx.synthesizers.registry import REGISTRY, register

X = torch.rand(4, 6)


class Scale(Synthesizer):
    """One factor a feature, and a layer on the context."""

    def __init__(self, activation: Activation, context_size: int = 0) -> None:
        super().__init__(activation, context_size)
        self.factor = nn.Parameter(torch.zeros(self.features))
        self.joined = nn.Linear(self.features + context_size, self.features)

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
        joined: Tensor = self.joined(self.with_context(activation, context))
        return self.factor * activation + 0 * joined


def plain(activation: Activation, context_size: int) -> nn.Module:
    """No subclass: any module that takes (activation, context)."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(activation.features, activation.features)

        def forward(self, h: Tensor, context: Tensor | None) -> Tensor:
            return self.layer(h)

    return Plain()


@pytest.mark.parametrize(("own", "name"), [(Scale, "Scale"), (plain, "plain")])
@pytest.mark.parametrize("unlock", ["none", "backward"])
@pytest.mark.parametrize("settings", [{}, {"classes": 3}])
def test_own_synthesizers(own: Any, name: str, unlock: str, settings: Any) -> None:
    net = dni_fx.transform(two_layers(), X, cuts=2, synthesizer=own, unlock=unlock, **settings)
    context = {"dni_context": torch.tensor([0, 1, 2, 0])} if settings else {}
    net(X, **context).sum().backward()
    assert all(p.grad is not None for p in net.dni.parameters())
    assert net.dni.plan.rewrite is not None
    assert list(net.dni.plan.rewrite.synthesizers.values()) == [name]


def test_registered_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "REGISTRY", REGISTRY.copy())
    register("scale")(Scale)
    net = dni_fx.transform(two_layers(), X, cuts=2, synthesizer="scale")
    assert [type(s) for s in net.dni.synthesizers.values()] == [Scale]
    assert "scale" not in REGISTRY


@pytest.mark.parametrize("shape", [(4, 1), (4, 9), (1, 8), (8,), (4, 8, 1)])
def test_an_output_of_the_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    class Wrong(Synthesizer):
        def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
            return torch.zeros(shape)

    with pytest.raises(DniFxError) as caught:
        dni_fx.transform(two_layers(), X, cuts=2, synthesizer=Wrong)
    assert f"synthesizer Wrong returned {list(shape)} for an activation of shape [4, 8]" in str(caught.value)


def test_an_output_that_goes_wrong_later_is_refused() -> None:
    """For other sizes than those of the example."""

    class Fixed(Synthesizer):
        def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
            return torch.zeros(4, 8)

    net = dni_fx.transform(two_layers(), X, cuts=2, synthesizer=Fixed, verify=False)
    with pytest.raises(DniFxError, match="synthesizer Fixed returned shape"):
        net(X[:2])


def test_the_base_class_says_what_to_define() -> None:
    with pytest.raises(DniFxError, match=r"Synthesizer must define forward\(activation, context\)"):
        dni_fx.transform(two_layers(), X, cuts=2, synthesizer=Synthesizer)
