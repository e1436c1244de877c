"""Which segments compute their activations again: all, or with a memory budget as many as have to."""

import io
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from exit_nets import Attention
from rich.console import Console
from torch import Tensor, nn

import dni_fx
from dni_fx.errors import DniFxError, NoLegalCutError
from dni_fx.plans import Plan
from dni_fx.report.plan import plan_table

pytestmark = pytest.mark.slow


class Net(nn.Module):
    """Five residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Attention(8) for _ in range(5)))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x))


X = torch.rand(8, 16, 8)


def plan(cuts: Any = "auto", **options: Any) -> Plan:
    torch.manual_seed(0)
    return dni_fx.plan(Net(), X, cuts=cuts, loss="mse_loss", verify=False, **options)


def counts(found: Plan) -> list[int]:
    return [len(segment.recomputed) for segment in found.segments]


def peak(found: Plan) -> int:
    assert found.forecast is not None
    return found.forecast.cut.peak_bytes


def step(found: Plan) -> float:
    assert found.forecast is not None
    return found.forecast.cut.step


@pytest.mark.parametrize("cuts", [3, ["blocks.1", "blocks.3"], "every:Attention"])
def test_every_segment_computes_its_activations_again(cuts: Any) -> None:
    kept, again = plan(cuts), plan(cuts, inside="checkpoint")
    assert [cut.after for cut in again.cuts] == [cut.after for cut in kept.cuts]
    assert sum(counts(again)) > 0 == sum(counts(kept))
    assert peak(again) < peak(kept)
    for one, other in zip(again.segments, kept.segments, strict=True):
        assert one.peak_bytes <= other.peak_bytes and (one.peak_bytes < other.peak_bytes) == bool(one.recomputed)
        assert one.forward == other.forward
        # Its pieces run a second time: at most one more forward pass.
        assert 0 < one.backward - other.backward <= one.forward if one.recomputed else one.backward == other.backward
    assert "their activations again" in again.why and "again" not in kept.why


def test_pieces_lie_in_their_segment_one_behind_the_other() -> None:
    for segment in plan(2, inside="checkpoint").segments:
        places = [segment.nodes.index(name) for piece in segment.recomputed for name in piece]
        assert places == sorted(places)


def test_fewer_cuts_are_needed_for_the_least_memory() -> None:
    kept, again = plan(), plan(inside="checkpoint")
    assert len(again.cuts) <= len(kept.cuts) and peak(again) < peak(kept)
    assert again.why.startswith("auto: the best plan that was weighed for memory")


def test_a_budget_is_kept_in_the_least_time() -> None:
    """Nothing is computed again without need; then as few segments as have to."""
    two, least = plan(2), plan(inside="checkpoint")
    roomy = plan(inside="checkpoint", memory_budget=2 * peak(two))
    assert counts(roomy) == [0, 0] and "no segment has to compute its activations again" in roomy.why
    tight = plan(inside="checkpoint", memory_budget=peak(least))
    assert sum(counts(tight)) > 0 and peak(tight) <= peak(least) and step(tight) <= step(least)
    assert tight.why.startswith("auto, the fastest plan that fits into")
    uneven = plan(2, inside="checkpoint", memory_budget=peak(two) - 1)
    assert peak(uneven) < peak(two) and step(uneven) <= step(plan(2, inside="checkpoint"))
    assert 0 in counts(uneven) and any(counts(uneven))  # one of the two fits as it is
    with pytest.raises(NoLegalCutError, match="was found that fits into 1 KiB: the least predicted peak is"):
        plan(inside="checkpoint", memory_budget=1024)


def test_a_cut_may_be_cheaper_than_a_second_run() -> None:
    """More cuts may cost less time than a second run of half of the net."""
    tail = {"synthesizer": "exit(units=0)"}
    five = plan(5, **tail)
    found = plan(inside="checkpoint", memory_budget=peak(five), **tail)
    assert peak(found) <= peak(five) and step(found) <= step(five)


def test_the_objective_throughput() -> None:
    kept, again = (plan(3, objective="throughput", inside=inside) for inside in ("keep", "checkpoint"))
    assert kept.forecast is not None and again.forecast is not None
    assert kept.forecast.cut.slowest < again.forecast.cut.slowest
    assert again.verdict is not None and again.verdict.weighed[0].value > kept.verdict.weighed[0].value  # type: ignore[union-attr]


def test_a_saved_plan_is_repeated() -> None:
    made = plan(3, inside="checkpoint")
    read = Plan.from_json(made.to_json())
    assert read == made
    for inside in ("keep", "checkpoint"):
        again = plan(read, inside=inside)
        assert again.segments == made.segments
        assert again.why.count("their activations again") == 1
    other = plan(plan(3), inside="checkpoint")
    assert other.segments == made.segments


def test_a_plan_of_an_older_version() -> None:
    data = json.loads(plan(3).to_json())
    for segment in data["segments"]:
        del segment["recomputed"]
    assert Plan.from_json(json.dumps(data)) == plan(3)


@pytest.mark.parametrize("how", ["unknown", "turned", "twice", "elsewhere"])
def test_damaged_pieces(how: str) -> None:
    made = plan(3, inside="checkpoint")
    (first, last), *_ = made.segments[1].recomputed
    pieces = {
        "unknown": ((first, "nothing"),),
        "turned": ((last, first),),
        "twice": ((first, last), (first, last)),
        "elsewhere": ((made.segments[0].nodes[0], last),),
    }[how]
    segments = (made.segments[0], replace(made.segments[1], recomputed=pieces), made.segments[2])
    with pytest.raises(DniFxError, match=r"does not hold legal pieces: segments\[1\]"):
        plan(replace(made, segments=segments))


def test_the_printed_plan_shows_pieces() -> None:
    console = Console(width=140, record=True, file=io.StringIO())
    made = plan(3, inside="checkpoint")
    console.print(plan_table(made))
    shown = console.export_text()
    assert "pieces: computed again" in " ".join(shown.split())
    rows = [line.split() for line in shown.splitlines() if line.split()[:1] in (["0"], ["1"], ["2"])][:3]
    assert all(str(count) in row for row, count in zip(rows, counts(made), strict=True))
    console.print(plan_table(plan(3)))
    assert "pieces" not in console.export_text()
