"""The nodes that stay in order: random draws, writes in place, uses of a buffer, calls of unknown code."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from dni_fx.capture import capture
from dni_fx.graph.kept_order import kept_order
from dni_fx.model import to_inputs


class Unknown(nn.Module):
    """Kept whole: it reads `training`."""

    def forward(self, h: Tensor) -> Tensor:
        return 2 * h if self.training else h


class Two(nn.Module):
    """Two branches that do not use each other."""

    def __init__(self, branches: Callable[["Two", Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.drop, self.norm, self.short = nn.Dropout(), nn.BatchNorm1d(6), nn.Embedding(5, 6, max_norm=1.0)
        self.unknown, self.hooked = Unknown(), nn.Tanh()
        self.hooked.register_forward_hook(lambda *_: None)
        self.register_buffer("table", torch.ones(6))
        self.branches = branches

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.branches(self, self.first(x), self.second(x))
        return a + b


def graph_of(branches: Callable[[Two, Tensor, Tensor], tuple[Tensor, Tensor]], frontend: str = "fx") -> fx.Graph:
    return capture(Two(branches), to_inputs(torch.rand(4, 6), None), frontend, compare=False).module.graph


def normed(net: Two, h: Tensor) -> Tensor:
    return F.batch_norm(h, net.norm.running_mean, net.norm.running_var, training=True)


@pytest.mark.parametrize("frontend", ["fx", "export"])
@pytest.mark.parametrize(
    ("branches", "reason"),
    [
        (lambda net, a, b: (a.tanh(), b.relu()), ""),
        (lambda net, a, b: (net.drop(a), b), ""),
        (lambda net, a, b: (net.drop(a), F.dropout(b)), "random draws"),
        (lambda net, a, b: (a + torch.rand_like(a), b.bernoulli()), "random draws"),
        (lambda net, a, b: (net.norm(a), b), ""),
        (lambda net, a, b: (net.norm(a), net.norm(b)), "uses of one buffer"),
        (lambda net, a, b: (normed(net, a), normed(net, b)), "uses of one buffer"),
        (lambda net, a, b: (net.norm(a), b * net.norm.running_var), "uses of one buffer"),
        (lambda net, a, b: (a * net.table, b), ""),
    ],
)
def test_reasons(branches: Callable[[Two, Tensor, Tensor], tuple[Tensor, Tensor]], reason: str, frontend: str) -> None:
    kept = kept_order(graph_of(branches, frontend))
    kinds = set(kept.pairs.values())
    inside = {"writes in place", "uses of one buffer"} if frontend == "export" else set()  # of a single batch norm
    assert kinds - inside <= {reason} and (reason in kinds or not reason) and not kept.whole


def test_unknown_code_stays_in_order_with_draws() -> None:
    kept = kept_order(graph_of(lambda net, a, b: (net.unknown(a), net.hooked(b) + net.drop(b))))
    assert kept.pairs == dict.fromkeys(
        [("unknown", "hooked"), ("hooked", "drop")], "calls of code that is not of torch"
    )
    assert kept.reason == "calls of code that is not of torch stay in order"


def test_a_weight_that_a_layer_keeps_short() -> None:
    kept = kept_order(graph_of(lambda net, a, b: (a + net.short(a.argmax(1) * 0), b * net.short.weight.sum())))
    assert ("short", "short_weight") in kept.pairs


def test_writes_stay_between_the_reads_before_and_after() -> None:
    def branches(net: Two, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        shared = torch.zeros_like(a)
        before = a + shared
        shared.add_(1)
        return before, b + shared

    graph = graph_of(branches)
    kept = kept_order(graph)
    assert kept.pairs == dict.fromkeys([("add", "add_"), ("add_", "add_1")], "writes in place")
    names = [node.name for node in graph.nodes]
    assert kept.forbids(graph, names) == ""
    swapped = [{"add_": "add_1", "add_1": "add_"}.get(name, name) for name in names]
    assert kept.forbids(graph, swapped) == "add_1 comes before add_"
    assert kept.forbids(graph, names[::-1]).startswith("first comes before x")
    assert kept.forbids(graph, names[1:]) == "it does not name each node once"


def test_an_open_autocast_block_keeps_every_node() -> None:
    def branches(net: Two, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            a = net.first(a)
        return a.float(), net.second(b)

    graph = graph_of(branches, "export")
    kept = kept_order(graph)
    assert kept.whole == kept.reason == "_enter_autocast changes how later nodes run"
    assert kept.forbids(graph, [node.name for node in graph.nodes]) == ""


class Fixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
        return scale * self.first(x) + self.second(x)


def test_the_check_of_a_fixed_argument_keeps_nothing() -> None:
    module = capture(Fixed(), to_inputs((torch.rand(4, 6), 2.0), None), "fx").module
    assert "specialised" in {node.name for node in module.graph.nodes}
    assert kept_order(module.graph).reason == ""


class Pair(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return 2 * x + y


def test_inputs_stay_in_order() -> None:
    graph = capture(Pair(), to_inputs((torch.rand(2, 3), torch.rand(2, 3)), None), "fx", compare=False).module.graph
    x, y, *rest = [node.name for node in graph.nodes]
    assert kept_order(graph).forbids(graph, [y, x, *rest]) == "the inputs are in another order"
