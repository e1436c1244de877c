"""Where the user names no synthesizer, and chooses no place, the synthesizers of maps keep the share of a step."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dni_fx
from dni_fx.cuts.search import SHARE
from dni_fx.synthesizers import FOR_MAPS

CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Bottleneck(nn.Module):
    """Many channels between blocks, few within: a 3 wide convolution over all channels costs more than the block."""

    def __init__(self, axes: int, channels: int = 48) -> None:
        super().__init__()
        conv = CONV[axes]
        self.branch = nn.Sequential(
            conv(channels, 16, 1), nn.ReLU(), conv(16, 16, 3, padding=1), nn.ReLU(), conv(16, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.branch(x))


class Separable(nn.Module):
    """A convolution for each channel, then one over channels."""

    def __init__(self, axes: int, channels: int = 48) -> None:
        super().__init__()
        self.depth = CONV[axes](channels, channels, 3, padding=1, groups=channels)
        self.width = CONV[axes](channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.width(self.depth(x)))


def net_of(block: Callable[[int], nn.Module], axes: int = 2, blocks: int = 7) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Sequential(CONV[axes](2, 48, 3, padding=1), nn.ReLU()), *(block(axes) for _ in range(blocks))]
    return nn.Sequential(*layers, nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(48, 5))


def maps(axes: int = 2, rows: int = 4) -> Tensor:
    return torch.rand(rows, 2, *{1: (40,), 2: (12, 10), 3: (6, 5, 4)}[axes])


def share_of(plan: dni_fx.Plan) -> float:
    assert plan.forecast is not None
    return sum(segment.synthesizers for segment in plan.segments) / plan.forecast.backprop.step


@pytest.mark.parametrize(
    ("block", "axes", "cuts"),
    [
        *((block, axes, cuts) for block, axes in ((Bottleneck, 1), (Bottleneck, 2), (Separable, 2)) for cuts in (2, 4)),
        *((block, 3, cuts) for block in (Bottleneck, Separable) for cuts in ("auto", 4)),
        *((block, 2, cuts) for block in (Bottleneck, Separable) for cuts in ("auto", 6)),
    ],
)
def test_the_share_is_kept(block: Any, axes: int, cuts: Any) -> None:
    rows = 16 if cuts == "auto" else 4  # with fewer, cuts in a net of three axes save nothing
    plan = dni_fx.plan(net_of(block, axes), maps(axes, rows), cuts=cuts, verify=False)
    assert len(plan.segments) == (cuts if isinstance(cuts, int) else len(plan.segments)) > 1
    assert 0 < share_of(plan) <= SHARE * (1 + 1e-9)
    reason = f"maps get {plan.for_maps}, since dearer synthesizers take more than 5 % of a step"
    assert (reason in plan.why) == (plan.for_maps != FOR_MAPS[0])
    if plan.for_maps == FOR_MAPS[0]:  # the best cut is above the maps
        assert [tensor.shape for cut in plan.cuts for tensor in cut.tensors] == [(rows, 48)]


@pytest.mark.parametrize("block", [Bottleneck, Separable])
def test_by_name_nothing_changes(block: Any) -> None:
    plan = dni_fx.plan(net_of(block), maps(), cuts=4, synthesizer="conv", verify=False)
    assert share_of(plan) > SHARE
    assert plan.for_maps == FOR_MAPS[0] and "maps get" not in plan.why
    cheaper = dni_fx.plan(net_of(block), maps(), cuts=2, verify=False)
    net = dni_fx.transform(net_of(block), maps(), cuts=cheaper, synthesizer="conv", verify=False)
    assert set(net.dni.plan.rewrite.synthesizers.values()) == {"conv"}


@pytest.mark.parametrize("cuts", [["1", "4"], "every:Bottleneck"])
def test_at_places_that_the_user_chooses_it_is_the_best(cuts: Any) -> None:
    net = dni_fx.transform(net_of(Bottleneck), maps(), cuts=cuts, verify=False)
    assert set(net.dni.plan.rewrite.synthesizers.values()) == {"conv"} and "maps get" not in net.dni.plan.why


def test_the_limits_of_the_user() -> None:
    """A larger share takes a dearer synthesizer; with a memory budget alone there is no share."""
    plans = [
        dni_fx.plan(net_of(Separable), maps(), cuts=3, verify=False, synthesizer_share=share)
        for share in (0.01, SHARE, 0.4, 9.0)
    ]
    order = [FOR_MAPS.index(plan.for_maps) for plan in plans]
    assert order == sorted(order, reverse=True) and order[0] == 2 and order[-1] == 0
    budget = dni_fx.plan(net_of(Separable), maps(), cuts=3, verify=False, memory_budget="1GiB")
    assert budget.for_maps == FOR_MAPS[0]


def test_where_none_keeps_the_share_the_cheapest_is_taken() -> None:
    narrow = nn.Sequential(*(nn.Sequential(nn.Conv2d(48, 48, 1), nn.ReLU()) for _ in range(8)), nn.Conv2d(48, 1, 1))
    plan = dni_fx.plan(narrow, torch.rand(2, 48, 3, 3), cuts=8, verify=False)
    assert plan.for_maps == FOR_MAPS[-1] and share_of(plan) > SHARE
    assert "the synthesizers take" in plan.why


@pytest.mark.parametrize("frontend", ["fx", "modules"])
def test_a_plan_keeps_the_synthesizers(frontend: str) -> None:
    made: dict[str, Any] = {"frontend": frontend, "classes": 5}
    net = dni_fx.transform(net_of(Bottleneck), maps(), cuts=3, **made)
    names = net.dni.plan.rewrite.synthesizers
    assert set(names.values()) == {net.dni.plan.for_maps} <= set(FOR_MAPS[1:])
    saved = dni_fx.Plan.from_json(net.dni.plan.to_json())
    again = dni_fx.transform(net_of(Bottleneck), maps(), cuts=saved, **made)
    assert again.dni.plan.rewrite.synthesizers == names
    assert again.dni.plan.segments == net.dni.plan.segments  # with their costs
    nn.functional.cross_entropy(net(maps(), dni_context=torch.arange(4)), torch.arange(4)).backward()
    assert all(p.grad is not None for p in net.dni.parameters())


def test_with_a_loss_a_plan_of_synthesizers_gets_exits() -> None:
    plan = dni_fx.plan(net_of(Bottleneck), maps(), cuts=3, verify=False)
    net = dni_fx.transform(net_of(Bottleneck), maps(), cuts=plan, loss="cross_entropy", verify=False)
    assert all(name.startswith("exit(") for name in net.dni.plan.rewrite.synthesizers.values())


def test_vectors_and_sequences_have_no_choice() -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(6)))
    net = dni_fx.transform(model, torch.rand(4, 8), cuts=3, verify=False)
    assert set(net.dni.plan.rewrite.synthesizers.values()) == {"linear"} and "maps get" not in net.dni.plan.why
