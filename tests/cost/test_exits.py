"""Which exits are planned for the graphs of real models, whose weights they use, and what they cost."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from exit_nets import NETS, ConvBlock, Transformer
from torch import Tensor, nn

import dni_fx
from dni_fx.cost import WORST_RANK, exit_nodes
from dni_fx.cost.exit_shares import EXIT_SHARE
from dni_fx.cost.exits import ExitPlanner
from dni_fx.cost.model import CostModel
from dni_fx.errors import DniFxError
from dni_fx.graph.flow import dataflow
from dni_fx.model.inputs import to_inputs
from dni_fx.partition.flow_node import flow_node
from dni_fx.partition.positions import Position, find_positions
from dni_fx.planning import Request, capture_and_plan
from dni_fx.plans import ExitPlan, Plan
from dni_fx.settings import Settings
from dni_fx.synthesizers.exits import ExitOptions

BRANCH = {"mlp_0", "mlp_1", "mlp_2"}


def planned(name: str, cut: int, units: int | str = 1, weights: str = "auto", loss: Any = None) -> ExitPlan:
    found = NETS[name].net(f"exit(units={units!r}, weights={weights!r})", loss=loss).dni.plan.cuts[cut].exit
    assert found is not None
    return found


def planner(name: str, **options: Any) -> tuple[ExitPlanner, dict[str, Position]]:
    case = NETS[name]
    net = copy.deepcopy(case.net("exit").dni_uncut())
    flow = dataflow(net.graph)
    made = ExitPlanner(net, flow, ExitOptions(**options), has_loss=case.loss is not None)
    return made, {position.after: position for position in find_positions(flow) if not position.obstacle}


def test_an_exit_of_a_transformer() -> None:
    """The next attention with its sum, no other branch, and the final norm before the head."""
    found = planned("transformer", 0)
    assert found.unit is not None and not any("mlp" in name for name in found.unit.nodes)
    assert found.unit.nodes[:2] == ("blocks_1_norm1", "blocks_1_qkv") and found.unit.tensor.node == "add_2"
    assert found.unit.borrowed == ("blocks.1.norm1", "blocks.1.qkv", "blocks.1.out")
    assert (found.nodes, found.borrowed) == (("norm", "head"), ("norm", "head"))
    assert found.bypassed == {"add_5": "add_4", "add_4": "add_3", "add_3": "add_2"}
    assert (found.units, found.weights, found.inputs, found.loss, found.target) == (1, "shared", (), "", "")


def test_an_exit_of_a_resnet() -> None:
    """The next block, the shortcut that changes the shape, and the last activation function."""
    found = planned("resnet", 0)
    assert found.nodes == ("blocks_1_relu_1", "blocks_2_shortcut", "blocks_3_relu_1", "mean", "head")
    assert found.unit is not None and "blocks_1_conv1" in found.unit.nodes
    assert found.weights == "copy" and found.writes


class Stages(nn.Module):
    """A ResNet of two stages, the first one `blocks` blocks long."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        shapes = [(8, 8, 1)] * blocks + [(8, 12, 1), (12, 12, 1)]
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = nn.Sequential(*(ConvBlock(*shape, inplace=False) for shape in shapes))
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def of_stages(blocks: int, cuts: Any, synthesizer: str = "exit(units=0)") -> Plan:
    images = torch.randn(2, 1, 16, 16)
    net = dni_fx.transform(
        Stages(blocks), images, loss="cross_entropy", cuts=cuts, synthesizer=synthesizer, verify=False
    )
    return net.dni.plan


def test_a_block_that_changes_the_shape_runs_whole() -> None:
    """A projection shortcut alone is weak: a ResNet with such exits had 23 % errors, with whole blocks 11 %."""
    (cut,) = of_stages(12, ["blocks.3"]).cuts
    assert cut.exit is not None and {"blocks_12_conv1", "blocks_12_conv2", "blocks_12_shortcut"} <= {*cut.exit.nodes}


def test_a_block_that_costs_too_much_leaves_its_shortcut() -> None:
    (cut,) = of_stages(2, ["blocks.0"]).cuts
    assert cut.exit is not None and "blocks_2_shortcut" in cut.exit.nodes and "blocks_2_conv1" not in cut.exit.nodes


def test_automatic_cuts_go_where_no_shortcut_replaces_a_block() -> None:
    """If there are too few such places, they go elsewhere, too."""
    (cut,) = of_stages(2, 2).cuts
    assert cut.exit is not None and "blocks_2_shortcut" not in cut.exit.nodes
    assert len(of_stages(2, 4).cuts) == 3


@pytest.mark.parametrize("weights", ["copy", "fresh", "ema"])
def test_units_with_weights_of_their_own_run_for_the_exit(weights: str) -> None:
    found = planned("transformer", 0, weights=weights)
    assert found.unit is None and found.nodes[0] == "blocks_1_norm1"


def test_units_that_reach_over_the_next_cut_run_for_the_exit() -> None:
    """The segment above has one block, and the exit two."""
    found = planned("transformer", 0, units=2)
    assert found.unit is None and "blocks_2_qkv" in found.nodes and "blocks_2_qkv" not in found.borrowed


def test_an_exit_of_a_plain_net() -> None:
    found = planned("mlp", 0)
    assert found.unit is not None and (found.unit.nodes, found.nodes) == (("_2",), ("_7", "_8"))
    assert found.bypassed == {"_6": "_2"}


def test_a_chain_of_layers_with_residual_sums_inside() -> None:
    """The layers of `nn.TransformerEncoder` are single nodes; features before and after them are alike."""
    layers = [nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(3)]
    model = nn.Sequential(*layers, nn.Linear(8, 3))
    net = dni_fx.transform(model, torch.rand(2, 5, 8), loss="mse_loss", cuts=3, synthesizer="exit(units=0)")
    assert [cut.exit.weights for cut in net.dni.plan.cuts] == ["shared"] * 2


def test_an_exit_of_all_units() -> None:
    found = planned("mlp", 0, "all", "readonly")
    assert found.units == "all" and found.nodes == ("_2", "_3", "_4", "_5", "_6", "_7", "_8")


def test_cross_attention_is_kept_where_the_cut_is_in_the_encoder() -> None:
    found = planned("encoder-decoder", 0)
    assert "scaled_dot_product_attention_6" in found.nodes  # of the last layer of the decoder
    assert found.inputs == ("x",)


def test_the_models_own_loss_takes_the_labels_from_below() -> None:
    found = planned("own loss", 0)
    assert (found.loss, found.inputs, found.nodes[-1]) == ("cross_entropy", ("labels",), "cross_entropy")


def test_heads_where_the_later_layers_cost_too_much() -> None:
    for name, cut in (("unet", 0), ("autoencoder", 1)):
        found = planned(name, cut)
        assert (found.units, found.weights, found.nodes) == (0, "fresh", ())
        assert [head.node for head in found.heads] == [{"unet": "up1", "autoencoder": "_6"}[name]]
        assert not planned(name, cut, "all").heads
    assert planned("autoencoder", 0).target == "input_1" and planned("unet", 0).target == ""


def test_a_unit_that_was_asked_for_may_cost_more_than_the_share() -> None:
    """After a layer of another kind the tail is one block away, which is more than the share."""
    layers = [nn.Linear(6, 5), nn.Linear(5, 9), nn.Linear(9, 9), nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 3)]
    made = replace(NETS["mlp"], make=lambda: nn.Sequential(*layers), cuts=["0"])
    plans = [made.net(f"exit(units={units})").dni.plan.cuts[0].exit for units in (0, 1)]
    assert [bool(found.heads) for found in plans] == [True, False]
    assert (plans[1].unit.nodes, plans[1].nodes[-1]) == (("_1",), "_5")


class Towers(nn.Module):
    """Two towers, whose outputs a large head joins; the second is computed last."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.head = nn.Sequential(nn.Linear(12, 60), nn.Tanh(), nn.Linear(60, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.a(x), self.b(x)], 1))


def test_no_head_takes_one_tower_of_two() -> None:
    """The other tower would get no gradient."""
    made = replace(NETS["mlp"], make=lambda: Towers().double(), cuts=["b"])
    net = made.net("exit")
    assert not net.dni.plan.cuts[0].exit.heads
    assert all(gradient.abs().max() > 0 for gradient in made.step(net).values())


@pytest.mark.parametrize("weights", ["shared", "readonly", "copy", "fresh", "ema"])
def test_costs(weights: str) -> None:
    made, positions = planner("mlp", weights=weights)
    cost, nodes = made.cost(positions["_1"]), [flow_node(made.flow, name) for name in ("_2", "_7", "_8")]
    parameters = (6 * 6 + 6 + 6 * 3 + 3) * 8
    trains = weights in ("shared", "copy", "fresh")
    once = weights in ("shared", "readonly")  # the unit runs for the segment above, too
    forward = sum(node.forward for node in (nodes[1:] if once else nodes))
    backward = sum(node.backward for node in nodes)
    assert cost.time == forward + backward * (1 if trains else 0.5)
    assert cost.own == (parameters if weights in ("copy", "fresh", "ema") else 0)
    assert cost.trained == (parameters if trains else 0)
    assert cost.saved > 0


def test_the_costs_of_frozen_units() -> None:
    """Of the backward pass of the unit, half is for its weights, which get no gradient."""
    (trained, positions), (frozen, _) = (planner("mlp", weights="shared", frozen_units=b) for b in (False, True))
    costs = [made.cost(positions["_1"]) for made in (trained, frozen)]
    unit = flow_node(trained.flow, "_2")
    assert costs[0].time - costs[1].time == unit.backward / 2
    assert costs[0].trained - costs[1].trained == unit.gradient


@pytest.mark.parametrize(("weights", "is_trained"), [("auto", False), ("shared", True), ("copy", True)])
def test_a_large_last_layer(weights: str, is_trained: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gradient would be there until the segment above has run; the model's own loss trains it anyway."""
    monkeypatch.setattr(exit_nodes, "_MANY_WEIGHTS", 10)
    made, positions = planner("transformer", weights=weights)
    position = positions["add_1"]
    assert made.plan(position).constant == (() if is_trained else ("head",))
    of_all = sum(flow_node(made.flow, name).gradient for name in made.route(position).nodes)
    assert made.cost(position).trained == of_all - (0 if is_trained else flow_node(made.flow, "head").gradient)


def test_a_large_last_layer_with_weights_of_the_exits_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exit_nodes, "_MANY_WEIGHTS", 10)
    assert planned("resnet", 0).weights == "copy" and not planned("resnet", 0).constant


def test_the_share_of_a_step() -> None:
    made, positions = planner("mlp")
    model = CostModel(made.flow, {}, 0, exits=made)
    cuts = [positions["_1"], positions["_3"]]
    assert model.share([]) == 0
    assert model.share(cuts) == sum(made.cost(cut).time for cut in cuts) / model.predict([]).step
    assert model.refusal(cuts[0]) == ""


def test_automatic_cuts_avoid_branches_and_exits_of_all() -> None:
    made, positions = planner("transformer")
    avoided = {name for name, position in positions.items() if made.rank(position) == WORST_RANK}
    assert {"blocks_0_norm1", "blocks_1_mlp_1", "blocks_2_qkv"} <= avoided  # in branches
    assert {"add_5", "norm"} <= avoided  # only the tail is above
    assert not {"embed", "add", "add_1", "add_2", "add_3"} & avoided


def test_a_cut_on_which_the_loss_does_not_depend() -> None:
    """The second output of `TwoOutputs` has no part in the model's own loss."""
    made, positions = planner("own loss")
    after = replace(positions["tanh_1"], crossing=("net_v",), after="net_v", index=list(made.flow).index("net_v"))
    assert made.route(after) is None and made.rank(after) == WORST_RANK
    with pytest.raises(DniFxError, match="no exit from the cut after net_v: the loss does not depend on"):
        made.plan(after)


def test_chosen_cuts_keep_the_share() -> None:
    case = NETS["transformer"]
    request = Request("auto", "auto", Settings(loss=case.loss), verify=False)
    _, plan = capture_and_plan(Transformer(32), to_inputs(case.inputs, None), request)
    forecast = plan.forecast
    assert plan.cuts and all(cut.exit is not None and cut.exit.bypassed for cut in plan.cuts)
    assert forecast is not None and forecast.checkpoint is not None
    assert forecast.cut.step <= (1 + EXIT_SHARE) * forecast.backprop.step
