"""The cost model: sums over segments and over synthesizers, by hand."""

import networkx as nx
import pytest
from flows import add

from dni_fx.cost.model import CostModel
from dni_fx.cost.synthesizers import Price
from dni_fx.partition.positions import find_positions

PRICE = Price(parameter_bytes=8, time=0.5, bytes=4, transfer=3.0, kept=2)


def model_of_a_chain() -> CostModel:
    flow: nx.DiGraph[str] = nx.DiGraph(largest=0)
    for i in range(4):
        add(flow, f"n{i}", (f"n{i - 1}",) if i else (), forward=1.0 + i, backward=10.0, parameters=1)
    return CostModel(flow, {"n1": PRICE}, resident=1000, refused={"n2": "n2 is refused"})


def test_the_costs_of_a_cut_and_of_its_segments() -> None:
    model = model_of_a_chain()
    position = next(p for p in find_positions(model.flow) if p.crossing == ("n1",))
    cut = model.cut(position)
    assert (cut.time, cut.transfer, cut.static, cut.gradient, cut.kept) == (0.5, 3.0, 24, 8, 6)
    predicted = model.predict([position])
    assert [s.forward for s in predicted.segments] == [1.0 + 2.0, 3.0 + 4.0]
    assert [s.synthesizers for s in predicted.segments] == [0.5, 0.0]
    assert predicted.step == 10.0 + 40.0 + 0.5
    assert predicted.slowest == 7.0 + 20.0 + 3.0
    assert predicted.peak > model.resident + predicted.synthesizers


def test_a_refused_tensor_refuses_the_cut() -> None:
    model = model_of_a_chain()
    refusals = {p.crossing: model.refusal(p) for p in find_positions(model.flow)}
    assert refusals["n2",] == "n2 is refused" and refusals["n1",] == ""


def test_loads_are_predictions() -> None:
    """The search and the report add the same numbers."""
    model = model_of_a_chain()
    position = next(p for p in find_positions(model.flow) if p.crossing == ("n1",))
    loads = model.segment_loads("throughput", [position])
    assert [loads(0)[0], loads(1)[0]] == pytest.approx([s.load for s in model.predict([position]).segments])
