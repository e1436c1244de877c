"""Tensors that are unpacked are taken apart at once, as Python does it; the network stays the same."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import dni_fx

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
