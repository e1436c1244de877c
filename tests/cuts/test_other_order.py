"""The order that `partition` finds for a graph with branches; none where there are no heavy ones."""

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from towers import Towers, inputs, layers_of

from dni_fx.capture import capture
from dni_fx.cuts import other_order as module_under_test
from dni_fx.cuts.other_order import OtherOrder, other_order
from dni_fx.graph.flow import dataflow
from dni_fx.model import to_inputs
from dni_fx.partition import Objective
from dni_fx.passes.reorder_nodes import ReorderNodes


def captured(model: nn.Module, *tensors: Tensor) -> fx.GraphModule:
    return capture(model, to_inputs(tensors, None), "fx", compare=False).module


def order_of(module: fx.GraphModule, segments: int = 2, objective: Objective = "memory") -> OtherOrder:
    return other_order(module.graph, dataflow(module.graph), segments, objective)


class LightFirst(nn.Module):
    """A light tower runs before a heavy one, so its tensor crosses every place in the heavy one."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 2)
        self.b = nn.ModuleList(nn.Linear(16, 16) for _ in range(6))
        self.head = nn.Linear(18, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = torch.tanh(self.a(x))
        for layer in self.b:
            y = torch.tanh(layer(y))
        return self.head(torch.cat([x, y], 1))


@pytest.mark.parametrize("objective", ["memory", "throughput"])
def test_a_light_tower_is_moved_behind_the_cut(objective: Objective) -> None:
    module = captured(LightFirst(), torch.rand(64, 2), torch.rand(64, 16))
    ReorderNodes(order_of(module, objective=objective).names)(module)
    layers = layers_of(module.graph).split()
    assert layers[:3] == ["b0", "b1", "b2"] and "a" in layers[3:]
    assert [node.name for node in module.graph.nodes][:2] == ["x", "y"]  # as generated code has them


def test_draws_are_kept_where_the_order_allows_it() -> None:
    """The best order is not legal, another one is."""
    module = captured(Towers(("b0", "a1", "b2"), depth=6), *inputs(2048))
    found = order_of(module, segments=4)
    drops = [name for name in found.names if name.startswith("drops")]
    assert drops == ["drops_b0", "drops_a1", "drops_b2"] and not found.kept


class Attention(nn.Module):
    """Three projections that do not use each other."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x) for part in self.parts)
        return x + F.scaled_dot_product_attention(q, k, v)


def test_light_branches_are_no_other_order(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(module_under_test, "partition", lambda *_, **__: calls.append(1))
    module = captured(nn.Sequential(*(Attention() for _ in range(30))), torch.rand(4, 6, 8))
    assert order_of(module) == OtherOrder() and not calls
