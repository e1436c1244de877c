"""Each kind of `cuts=`, and the sentence that says why the plan cuts there."""

from typing import Any

import pytest
import torch
from nets import mlp
from torch import nn

import dni_fx
from dni_fx import DniFxError
from dni_fx.cost import CostModel

X = torch.rand(5, 6)


@pytest.mark.parametrize(
    ("cuts", "after", "why"),
    [
        ("4", ["_4"], "after 4, as asked for"),
        (["6", "2"], ["_2", "_6"], "after 6, 2, as asked for"),
        (2, None, "2 segments asked for: optimal for memory"),
    ],
)
def test_why(cuts: Any, after: list[str] | None, why: str) -> None:
    plan = dni_fx.plan(mlp(), torch.rand(64, 6), cuts=cuts)
    assert plan.why.startswith(why)
    assert after is None or [cut.after for cut in plan.cuts] == after


def test_why_auto() -> None:
    deep = nn.Sequential(*[layer for _ in range(12) for layer in (nn.Linear(16, 16), nn.Tanh())])
    assert dni_fx.plan(deep, torch.rand(1024, 16), cuts="auto").why.startswith("auto: optimal for memory")


@pytest.mark.parametrize(
    ("cuts", "message"),
    [
        (1, "a number of segments is 2 or more"),
        (True, "a number of segments is 2 or more"),
        ([], "no cuts given"),
        (2.5, "or give 'auto', a list of names"),
        (["2", 4], "or give 'auto', a list of names"),
        (9, "cannot make 9 segments: the model has legal cuts for"),
    ],
)
def test_refused_cuts(cuts: Any, message: str) -> None:
    with pytest.raises(DniFxError, match=message):
        dni_fx.plan(mlp(), X, cuts=cuts)


@pytest.mark.parametrize(("share", "is_best"), [(None, True), (0.15, False), (0.3, True)])
def test_the_share_that_a_user_gives_is_kept(
    share: float | None, is_best: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exits at the best places take 20 % of a step: room that is there by default, but not above a given share."""
    model = nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(6, 6), nn.Tanh())))
    best = {"_1", "_3"}
    monkeypatch.setattr(CostModel, "rank", lambda _, place: int(place.after not in best))
    monkeypatch.setattr(CostModel, "share", lambda _, cuts: sum(0.2 if place.after in best else 0.01 for place in cuts))
    options: dict[str, Any] = {"loss": "mse_loss", "synthesizer": "exit(units=0)", "verify": False}
    (cut,) = dni_fx.plan(model, X, cuts=2, synthesizer_share=share, **options).cuts
    assert (cut.after in best) == is_best


def test_limits_are_for_cuts_that_are_searched() -> None:
    with pytest.raises(DniFxError, match="are for cuts='auto' or a number of segments"):
        dni_fx.plan(mlp(), X, cuts=["4"], objective="throughput")


def test_a_saved_plan_gives_its_reason_once() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    plan = dni_fx.plan(model, X, cuts=["1"])
    again = dni_fx.plan(model, X, cuts=dni_fx.plan(model, X, cuts=plan))
    assert again.why == "a saved plan: after 1, as asked for"


def test_machines_of_other_speeds() -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(12)))
    options: dict[str, Any] = {"synthesizer": "linear", "objective": "throughput", "verify": False}
    for speeds, layers in (((1, 1), 6), ((1, 0.5), 8), ((1, 3), 3)):
        found = dni_fx.plan(model, torch.rand(4, 16), cuts=2, speeds=speeds, **options)
        assert abs(found.segments[0].parameters / (16 * 17) - layers) <= 1 and "machines of the speeds 1, " in found.why
    with pytest.raises(DniFxError, match=r"speeds= has 2 numbers: give cuts=2, a segment for each"):
        dni_fx.plan(model, torch.rand(4, 16), cuts=3, speeds=(1, 2), **options)
    with pytest.raises(DniFxError, match='speeds= is for objective="throughput"'):
        dni_fx.plan(model, torch.rand(4, 16), cuts=2, speeds=(1, 2))
    with pytest.raises(DniFxError, match=r"speeds=\(0,\)"):
        dni_fx.plan(model, torch.rand(4, 16), cuts=2, speeds=(0,))
