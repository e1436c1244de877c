"""Automatic cuts against every plan that there is, on graphs of plain numbers."""

import itertools
import random
from dataclasses import replace
from typing import Any, get_args

import networkx as nx
import pytest
from flows import add, change
from seeds import seeds

from dni_fx.cost.model import CostModel
from dni_fx.cost.synthesizers import Price
from dni_fx.cuts import search as choosing
from dni_fx.cuts.search import CHARGE, CHARGE_BELOW, SHARE, Limits, best_cuts
from dni_fx.errors import DniFxError, NoLegalCutError
from dni_fx.partition import Objective
from dni_fx.partition.positions import Candidate, find_candidates

pytestmark = pytest.mark.slow

OBJECTIVES: tuple[Objective, ...] = get_args(Objective)


def model_of(seed: int, layers: int, *, dear: bool = False) -> tuple[CostModel, list[Candidate]]:
    """A chain of layers of random costs, some with a skip over them."""
    rng = random.Random(seed)
    flow: nx.DiGraph[str] = nx.DiGraph(largest=0)
    prices: dict[str, Price] = {}
    for i in range(layers + 2):
        name = "x" if i == 0 else "output" if i == layers + 1 else f"n{i}"
        layer = name.startswith("n")
        size = rng.randrange(1, 9) if layer else 0
        add(
            flow,
            name,
            forward=rng.randrange(1, 20) if layer else 0,
            backward=rng.randrange(1, 40) if layer else 0,
            owns={i: size} if layer else {},
            saves={i: size} if layer and rng.random() < 0.8 else {},
            storages=frozenset({i}),
            gradient=rng.randrange(5) if layer else 0,
            parameters=int(layer),
            carries_gradient=layer,
            can_have_synthesizer=layer,
            bytes=size,
        )
        if i:
            flow.add_edge(list(flow)[-2], name)
        if i > 2 and layer and rng.random() < 0.3:
            flow.add_edge(f"n{i - 2}", name)
        if layer:
            time = rng.randrange(1, 30) if dear else rng.random() / 10
            prices[name] = Price(rng.randrange(4), time, size, rng.random(), rng.randrange(3))
    return CostModel(flow, prices, 1000), find_candidates(flow)


def value_of(model: CostModel, chosen: tuple[Candidate, ...], objective: Objective) -> float:
    """What is minimised, from the definition."""
    positions = [c.position for c in chosen]
    whole = model.segment_loads(objective, [])(0)[0]
    loads = model.segment_loads(objective, positions)
    heaviest = max(float(loads(i)[0]) for i in range(len(chosen) + 1))
    static = sum(model.cut(p).static + model.cut(p).gradient for p in positions) if objective == "memory" else 0
    charges = sum(len(c.position.crossing) * (CHARGE + CHARGE_BELOW * (1 - c.depth)) * whole for c in chosen)
    return heaviest + static + charges


def share_of(model: CostModel, chosen: tuple[Candidate, ...]) -> float:
    return sum(model.cut(c.position).time for c in chosen) / model.predict([]).step


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("seed", seeds(20, 60))
def test_the_best_of_all_plans_is_found(seed: int, objective: Objective) -> None:
    model, places = model_of(seed, 4 + seed % 6)
    plans = [c for k in range(1, len(places) + 1) for c in itertools.combinations(places, k)]
    found, others, share = best_cuts(model, places, None, Limits(objective))
    best = min(value_of(model, plan, objective) for plan in plans if share_of(model, plan) <= share)
    assert found.value == pytest.approx(best)
    assert found.bound == pytest.approx(found.value)
    for other in others:
        chosen = tuple(c for c in places if c.position in other.cuts)
        assert other.value == pytest.approx(value_of(model, chosen, objective))
        assert other.value >= found.value or other.share > share
    for segments in range(2, len(places) + 2):
        found, _, share = best_cuts(model, places, segments, Limits(objective))
        assert len(found.cuts) == segments - 1
        values = [value_of(model, p, objective) for p in plans if len(p) == segments - 1]
        assert found.value == pytest.approx(min(values))


@pytest.mark.parametrize("seed", seeds(30, 100))
def test_where_the_share_binds_the_bound_holds(seed: int) -> None:
    model, places = model_of(seed, 8, dear=True)
    for objective, k in itertools.product(OBJECTIVES, (1, 2, 3)):
        plans = list(itertools.combinations(places, k))
        share = sorted(share_of(model, plan) for plan in plans)[len(plans) // 4]
        found, _, allowed = best_cuts(model, places, k + 1, Limits(objective, share))
        assert allowed == share
        assert found.share == pytest.approx(share_of(model, tuple(c for c in places if c.position in found.cuts)))
        assert found.share <= share * (1 + 1e-6)
        best = min(value_of(model, plan, objective) for plan in plans if share_of(model, plan) <= share * (1 + 1e-9))
        assert found.bound <= best * (1 + 1e-9) and best <= found.value * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(40, 60))
def test_the_bound_holds_for_any_number_of_cuts(seed: int) -> None:
    model, places = model_of(seed, 7, dear=True)
    plans = [c for k in range(1, len(places) + 1) for c in itertools.combinations(places, k)]
    least = min(share_of(model, plan) for plan in plans)
    for objective, factor in itertools.product(OBJECTIVES, (1.05, 1.5, 2.5)):
        share = factor * least
        found, _, _ = best_cuts(model, places, None, Limits(objective, share))
        best = min(value_of(model, plan, objective) for plan in plans if share_of(model, plan) <= share * (1 + 1e-9))
        assert found.bound <= best * (1 + 1e-9) and best <= found.value * (1 + 1e-9)


def test_the_share_is_often_met_with_the_best() -> None:
    """The test above would be empty if every bound were loose."""
    gaps = []
    for seed in range(60):
        model, places = model_of(seed, 8, dear=True)
        plans = list(itertools.combinations(places, 2))
        share = sorted(share_of(model, plan) for plan in plans)[len(plans) // 4]
        found, _, _ = best_cuts(model, places, 3, Limits("memory", share))
        gaps.append(found.value / found.bound - 1)
    assert sum(gap < 1e-9 for gap in gaps) > 20
    assert sum(gap > 1e-3 for gap in gaps) > 3  # and the bound is no copy of the value
    assert max(gaps) < 0.3


def test_the_share_is_relaxed_only_where_nothing_is_so_cheap() -> None:
    model, places = model_of(3, 6)
    model.prices = {name: replace(price, time=20.0 + i) for i, (name, price) in enumerate(model.prices.items())}
    least = min(share_of(model, (place,)) for place in places)
    assert least > SHARE
    assert best_cuts(model, places, None, Limits())[2] == pytest.approx(1.5 * least)
    with pytest.raises(DniFxError, match=r"take .* % of a step at least, more than the 1 % that they may"):
        best_cuts(model, places, None, Limits(share=0.01))


@pytest.mark.parametrize("seed", seeds(10, 30))
def test_a_budget_takes_the_fewest_cuts_that_fit(seed: int) -> None:
    model, places = model_of(seed, 7)
    peaks = {
        k: min(model.predict([c.position for c in plan]).peak for plan in itertools.combinations(places, k))
        for k in range(1, len(places) + 1)
    }
    # What is searched counts the synthesizers' gradients from the beginning: it may miss by so much.
    slack = 4 * len(places)
    for budget in sorted({int(p) + 1 + slack for p in peaks.values()}):
        fitting = [k for k, peak in peaks.items() if peak <= budget]
        for objective in OBJECTIVES:
            found, _, _ = best_cuts(model, places, None, Limits(objective, budget=budget))
            assert found.value == pytest.approx(
                value_of(model, tuple(c for c in places if c.position in found.cuts), objective)
            )
            assert found.bound <= found.value * (1 + 1e-9)
        found, _, _ = best_cuts(model, places, None, Limits(budget=budget, share=9.0))
        assert model.predict(found.cuts).peak <= budget
        assert len(found.cuts) >= min(fitting)
        if peaks[min(fitting)] + slack <= budget:
            assert len(found.cuts) == min(fitting)
    with pytest.raises(
        NoLegalCutError, match=r"no plan of up to .* was found that fits into 900 B: the least predicted peak is"
    ):
        best_cuts(model, places, None, Limits(budget=900))


def test_few_and_late_cuts_win_where_the_rest_is_equal() -> None:
    """Ten equal layers and free synthesizers: three cuts pay, a fourth does not; of equal ones the later."""
    model, places = model_of(7, 10)
    for name in model.prices:
        change(model.flow, name, forward=1, backward=2)
    skips = [(f"n{i - 2}", f"n{i}") for i in range(3, 11)]
    model.flow.remove_edges_from(skips)
    model = CostModel(model.flow, {n: Price(0, 0.0, 0, 0.0, 0) for n in model.prices}, 0)
    places = find_candidates(model.flow)
    found, others, _ = best_cuts(model, places, None, Limits("throughput"))
    assert [p.after for p in found.cuts] == ["n3", "n6", "n9"]
    assert {len(other.cuts) for other in others} == {2, 3, 4}


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"share": 0.0}, r"a synthesizer share of 0\.0: it is a number above 0"),
        ({"share": float("nan")}, "a synthesizer share of nan"),
        ({"share": float("inf")}, "a synthesizer share of inf"),
        ({"share": "0.1"}, "a synthesizer share of '0.1'"),
        ({"budget": 0}, "a memory budget of 0 bytes"),
    ],
)
def test_bad_limits(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(DniFxError, match=message):
        Limits(**limits)


def test_torch_is_not_needed() -> None:
    names: dict[str, Any] = vars(choosing)
    assert "torch" not in names
