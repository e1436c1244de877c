"""Plans in the order of the code and in another one: the better is kept, and the net is the same network."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import Scripted, failures, gradients, tell_truth
from torch import Tensor, nn
from towers import Towers, inputs, layers_of

import dni_fx
from dni_fx import DniFxError
from dni_fx.capture import capture
from dni_fx.cuts.better_order import in_better_order
from dni_fx.cuts.search import Limits
from dni_fx.graph.flow import dataflow
from dni_fx.model import Inputs, to_inputs
from dni_fx.plans import Plan

X = tuple(tensor.double() for tensor in inputs())

IN_TURN = "a0 b0 a1 b1 a2 b2 a3 b3"


def transformed(model: nn.Module, **options: Any) -> Any:
    return dni_fx.transform(model.double(), X, verify=False, **({"cuts": 2} | options))


def test_the_better_plan_is_in_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    net = transformed(Towers())
    assert layers_of(net.graph) != IN_TURN
    assert "the nodes run in another order, since as traced the cuts cost " in net.dni.plan.why
    monkeypatch.setattr("dni_fx.planning.in_better_order", lambda _module, _flow, planned, *_: planned())
    as_traced = transformed(Towers())
    assert layers_of(as_traced.graph) == IN_TURN
    plans: list[Plan] = [net.dni.plan, as_traced.dni.plan]
    assert len(plans[0].cuts[0].tensors) == 1
    peaks = [plan.forecast.cut.peak_bytes for plan in plans if plan.forecast is not None]
    assert peaks[0] < peaks[1]


def test_auto_cuts_what_it_would_not_cut_as_traced() -> None:
    plan = dni_fx.plan(Towers(depth=6), inputs(2048), verify=False)
    assert plan.cuts and "in another order, since as traced no cuts are worth it" in plan.why


class OneByOne(Towers):
    """One tower runs after the other."""

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        for number, layer in enumerate(self.a):
            x = self.layer(layer, x, f"a{number}")
        for number, layer in enumerate(self.b):
            y = self.layer(layer, y, f"b{number}")
        return {"logits": self.head(torch.cat([x, y], 1)), "hidden": y}


def test_a_worse_order_is_not_kept() -> None:
    """`partition` knows less of the costs than the cost model."""
    net = dni_fx.transform(OneByOne(depth=6), inputs(2048), cuts=3, objective="throughput", verify=False)
    assert layers_of(net.graph) == "a0 a1 a2 a3 a4 a5 b0 b1 b2 b3 b4 b5"
    assert "the nodes run as traced, since in another order the cuts cost " in net.dni.plan.why


def seeded(module: nn.Module) -> Any:
    torch.manual_seed(3)
    return module(*X)


@pytest.mark.parametrize("drops", [(), ("a1", "b3"), ("b0", "a3")])
@pytest.mark.parametrize("unlock", ["none", "backward"])
def test_it_is_the_same_network(drops: tuple[str, ...], unlock: str) -> None:
    """Bit for bit: outputs of all modes under one seed, buffers, and keys; and the draws stay in order."""
    model = Towers(drops, norm=True).double()
    reference = copy.deepcopy(model)
    net = transformed(model, unlock=unlock)
    order = layers_of(net.graph).split()
    assert "the nodes run in another order" in net.dni.plan.why
    assert [name for name in order if name.startswith("drop")] == [f"drop_{name}" for name in drops]
    for mode in (True, False):
        found, expected = seeded(net.train(mode)), seeded(reference.train(mode))
        assert all(torch.equal(found[name], expected[name]) for name in ("logits", "hidden"))
        buffers = dict(net.named_buffers())
        assert all(torch.equal(buffers[name], buffer) for name, buffer in reference.named_buffers())
    assert [name for name in net.state_dict() if not name.startswith("dni.")] == list(reference.state_dict())


@pytest.mark.parametrize("frontend", ["fx", "export"])
@pytest.mark.parametrize("options", [{"unlock": "none"}, {"unlock": "backward"}, {"unlock": "none", "mix": 1.0}])
def test_with_true_gradients_it_is_backpropagation(options: dict[str, Any], frontend: str) -> None:
    model = Towers(("a1", "b3"), norm=True)
    net = transformed(model, synthesizer="auto" if "mix" in options else Scripted, frontend=frontend, **options)
    assert "in another order" in net.dni.plan.why

    def call(module: nn.Module) -> Tensor:
        return module(*X)

    expected = gradients(model, call)
    if "mix" not in options:
        tell_truth(net, call)
    found = gradients(net, call)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-10, msg=name)


def test_with_exits_it_passes_all_checks() -> None:
    net = dni_fx.transform(
        Towers(), inputs(), cuts=3, loss=lambda out, target: (out["logits"] - target).square().mean()
    )
    assert "in another order" in net.dni.plan.why
    assert failures(net, inputs(), {}) == {}


class Shared(Towers):
    """A batch norm runs behind every layer of both towers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16)

    def layer(self, linear: nn.Module, h: Tensor, name: str) -> Tensor:
        return self.norm(super().layer(linear, h, name))


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (Towers([f"{tower}{number}" for number in range(4) for tower in "ab"]), "random draws stay in order"),
        (Shared(), "uses of one buffer stay in order"),
    ],
)
def test_where_the_order_has_to_stay(model: nn.Module, why: str) -> None:
    net = transformed(model)
    assert f"; the nodes run as traced, since {why}" in net.dni.plan.why


def test_a_saved_plan_and_a_saved_net_keep_the_order(tmp_path: Path) -> None:
    model = Towers().double()
    net = transformed(model)
    plan = Plan.from_json(net.dni.plan.to_json())
    again = transformed(model, cuts=plan)
    assert [node.name for node in again.graph.nodes] == [node.name for node in net.graph.nodes]
    assert again.dni.plan.segments == plan.segments and again.dni.plan.forecast == plan.forecast
    dni_fx.save(net, tmp_path / "net")
    loaded: Any = dni_fx.load(tmp_path / "net")
    assert layers_of(loaded.graph) == layers_of(net.graph)
    assert all(torch.equal(loaded.eval()(*X)[name], value) for name, value in net.eval()(*X).items())


def test_a_saved_plan_whose_order_is_not_legal_now() -> None:
    """The graph has the same names and the same operations; a layer draws random numbers now."""
    model = Towers([f"{tower}{number}" for number in range(4) for tower in "ab"]).double()
    drops, model.drops = model.drops, nn.ModuleDict({name: nn.ReLU() for name in model.drops})
    plan = dni_fx.plan(model, X, cuts=2, verify=False)
    assert "in another order" in plan.why
    model.drops = drops
    with pytest.raises(DniFxError, match="the nodes cannot run in another order: drops_a"):
        dni_fx.plan(model, X, cuts=plan, verify=False)


def test_a_chain_is_planned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("dni_fx.cuts.other_order.partition")
    layers = [layer for _ in range(4) for layer in (nn.Linear(16, 16), nn.Tanh())]
    assert "order" not in dni_fx.plan(nn.Sequential(*layers), X[0].float(), cuts=2, verify=False).why


def test_without_cuts_in_any_order_the_graph_stays_as_traced() -> None:
    example: Inputs = to_inputs(inputs(), None)
    module = capture(Towers(), example).module
    orders = []

    def planned() -> Any:
        orders.append(layers_of(module.graph))
        raise DniFxError(f"attempt {len(orders)}")

    with pytest.raises(DniFxError, match="attempt 1"):
        in_better_order(module, dataflow(module.graph), planned, 2, Limits())
    assert len(orders) == 2 and orders[1] != IN_TURN == orders[0] == layers_of(module.graph)
