"""What a plan holds: segments, bytes, FLOPs, what is tied, and that it fits any batch size."""

from typing import Any

import pytest
import torch
from nets import LongSkip, Recurrent, ResNet, Tied, TiedWeights, mlp

import dni_fx

torch.manual_seed(0)
X = torch.rand(5, 6)
TIED = (torch.randint(0, 10, (5, 7)), torch.rand(5, 7))

CASES: list[tuple[Any, Any, Any]] = [
    (mlp, X, 3),
    (ResNet, X, "every:Residual"),
    (LongSkip, X, ["tanh", "tanh_1", "tanh_2"]),
    (Recurrent, torch.rand(5, 4, 5), ["lstm", "gru"]),
    (Tied, TIED, ["tanh", "mul"]),
]


@pytest.mark.parametrize("cuts", [2, 3, "auto", ["2"], "every:ReLU"])
def test_a_plan_holds_for_any_batch_size(cuts: Any) -> None:
    """Only its costs do not: what is best for 3 rows need not be for 64."""
    plans = [dni_fx.plan(mlp(), torch.rand(n, 6), cuts=cuts) for n in (3, 64)]
    assert plans[0].fingerprint == plans[1].fingerprint
    plans[1] = dni_fx.plan(mlp(), torch.rand(64, 6), cuts=plans[0])
    assert [c.after for c in plans[0].cuts] == [c.after for c in plans[1].cuts]
    assert [s.nodes for s in plans[0].segments] == [s.nodes for s in plans[1].segments]
    assert [c.after for c in dni_fx.plan(mlp(), torch.rand(64, 6), cuts=plans[0]).cuts] == [
        c.after for c in plans[0].cuts
    ]


def test_segments_add_up_to_the_model() -> None:
    for make, example, cuts in CASES:
        model = make()
        plan = dni_fx.plan(model, example, cuts=cuts)
        assert sum(s.parameters for s in plan.segments) == sum(p.numel() for p in model.parameters())
        names = [n for s in plan.segments for n in s.nodes]
        assert len(names) == len(set(names))
        assert [s.nodes[-1] for s in plan.segments[:-1]] == [c.after for c in plan.cuts]
        for cut in plan.cuts:
            for tensor in cut.tensors:
                assert tensor.bytes == 4 * torch.Size(tensor.shape).numel()


@pytest.mark.parametrize("inside", ["keep", "checkpoint"])
def test_memory_over_the_step_has_the_predicted_peak(inside: str) -> None:
    forecast = dni_fx.plan(mlp(), torch.rand(64, 6), cuts=["2"], inside=inside).forecast
    assert forecast is not None
    for outlook, static in ((forecast.backprop, 0), (forecast.cut, forecast.synthesizer_bytes)):
        allocated = outlook.peak_bytes - forecast.resident_bytes - static
        assert max(*outlook.over_step, forecast.optimizer_bytes if static else 0) == allocated
    assert len(forecast.backprop.over_step) == 2 * 10 + 1  # each node forward and backward, then the end
    assert len(forecast.cut.over_step) == 2 * 10 + 2


def test_flops_and_bytes_are_right() -> None:
    plan = dni_fx.plan(mlp(), X, cuts=["2"])
    below, above = plan.segments
    assert below.flops == 2 * 5 * 6 * 8 + 40 + 40  # linear, batch norm, ReLU
    assert above.flops == 2 * 5 * 8 * 8 * 2 + 40 + 40 + 2 * 5 * 8 * 4
    assert (below.forward, above.forward) == (below.flops, above.flops)
    assert below.backward == 2 * 5 * 6 * 8 + 40 + 40  # the input needs no gradient
    assert above.backward == 2 * (2 * 5 * 8 * 8 * 2 + 2 * 5 * 8 * 4) + 40 + 40
    # Autograd keeps the input of the batch norm, its statistics, and the results of the ReLUs.
    assert below.activation_bytes == 4 * (40 + 2 * 8 + 40)
    assert above.activation_bytes == 4 * (40 + 40)


def test_the_plan_says_what_is_tied() -> None:
    plan = dni_fx.plan(TiedWeights(), X, cuts=["b"])
    assert plan.tied == {"a.weight": (0, 1)}
    assert dni_fx.Plan.from_json(plan.to_json()) == plan
