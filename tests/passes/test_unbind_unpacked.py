"""Tensors that are unpacked are taken apart at once, as Python does it; the network stays the same."""

import operator
from collections.abc import Callable

import pytest
import torch
from small_graphs import SmallGraph, lines, runs
from torch import Tensor, nn
from torch.fx import GraphModule

import dni_fx
from dni_fx.passes.unbind_unpacked import UnbindUnpacked

X = torch.rand(5, 6, generator=torch.Generator().manual_seed(0))


class Parts(nn.Module):
    """Three parts on the first axis, combined by `mix`."""

    def __init__(self, mix: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide, self.last = nn.Linear(6, 18), nn.Linear(6, 2)
        self.mix = mix

    def forward(self, x: Tensor) -> Tensor:
        parts = self.wide(x).view(x.size(0), 3, 6).transpose(0, 1)
        return self.last(torch.relu(self.mix(parts)))


def unpacked(parts: Tensor) -> Tensor:
    q, k, v = parts
    return q * k.sigmoid() + v


def one_left_out(parts: Tensor) -> Tensor:
    return parts[0] * parts[2]


def used_whole(parts: Tensor) -> Tensor:
    return parts[0] * parts[1] + parts[2] + parts.sum(0)


def sliced_too(parts: Tensor) -> Tensor:
    q, k, v = parts[0], parts[1], parts[2]
    return q * k + v + parts[1:].sum(0)


def written_to(parts: Tensor) -> Tensor:
    q, k, v = parts[0], parts[1], parts[2]
    q.mul_(2.0)
    return q * k + v


@pytest.mark.parametrize(
    ("mix", "count"),
    [(unpacked, 1), (one_left_out, 0), (used_whole, 0), (sliced_too, 0), (written_to, 0)],
    ids=lambda x: str(x)[:20],
)
def test_only_what_is_unpacked_is(mix: Callable[[Tensor], Tensor], count: int) -> None:
    net = dni_fx.transform(Parts(mix), X, cuts=["relu"], unlock="none", mix=1.0).train()
    assert net.dni.plan.frontend == "fx"
    assert sum(node.target is torch.unbind for node in net.graph.nodes) == count
    model = Parts(mix)
    for one in (net, model):
        one(X).square().mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(net.get_parameter(name).grad, parameter.grad)
    assert dni_fx.check(net, X)


def test_rows_that_happen_to_be_as_many() -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return self.last(torch.relu(h[0] + h[1]).unsqueeze(0))

    model = Rows()
    net = dni_fx.transform(model, X[:2], cuts=["first"]).eval()
    assert torch.equal(net(X), model.eval()(X))


def two_parts(*indices: object, rows: int = 2, mutates: frozenset[int] = frozenset()) -> GraphModule:
    """v = sin(x), of which these parts are added up."""
    small = SmallGraph()
    v = small.call(torch.sin, small.input("x"), name="v", storages={7})
    v.meta |= {"val": torch.zeros(rows, 3), "nn_module_stack": {"block": ("block", "Block")}}
    parts = [small.call(operator.getitem, v, index) for index in indices]
    total = parts[0]
    for part in parts[1:]:
        total = small.call(torch.add, total, part, mutates=mutates)
    return small.give(total)


def test_the_exact_nodes() -> None:
    module, x = two_parts(0, 1), torch.rand(2, 3)
    expected = module(x)
    assert UnbindUnpacked()(module).modified
    assert lines(module) == [
        "x",
        "v = sin(x)",
        "unbind = unbind(v)",
        "getitem = getitem(unbind, 0)",
        "getitem_1 = getitem(unbind, 1)",
        "add = add(getitem, getitem_1)",
        "return add",
    ]
    by_name = {node.name: node for node in module.graph.nodes}
    assert by_name["unbind"].meta["nn_module_stack"] == by_name["v"].meta["nn_module_stack"]
    assert torch.equal(runs(module, x), expected)


@pytest.mark.parametrize(
    "module",
    [
        two_parts(0, 1, rows=3),  # part 2 is not used
        two_parts(0, rows=1),
        two_parts(0, 1, slice(0, 1)),
        two_parts(0, 1, mutates=frozenset({7})),
    ],
    ids=["one-left-out", "one-row", "a-slice", "written-to"],
)
def test_a_graph_that_stays(module: GraphModule) -> None:
    before = lines(module)
    assert not UnbindUnpacked()(module).modified
    assert lines(module) == before
