"""Exits at work: all units give backprop's gradients; weights, random numbers, buffers, losses and copies of a net."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from exit_nets import NAMES, NETS, Case, ResNet, error, gradients, plain_mlp
from torch import Tensor, nn
from torch.nn import functional as F

import dni_fx
from dni_fx.plans import run_twice

ALL = "exit(units='all', weights='readonly')"


@pytest.mark.parametrize("unlock", ["backward", "none"])
@pytest.mark.parametrize("name", NAMES)
def test_all_units_give_backprops_gradients(name: str, unlock: str) -> None:
    case = NETS[name]
    assert error(case.step(case.net(ALL, unlock=unlock)), case.backprop()) < 1e-10


@pytest.mark.parametrize(
    ("name", "cuts", "crossing"),
    [
        ("mlp", ("relu", "relu_2"), [1, 1]),
        ("two outputs", ("tanh", "tanh_1"), [1, 1]),
        ("own loss", ("tanh", "tanh_1"), [1, 1]),
        ("unet", ("relu_1", "relu_2"), [2, 3]),
    ],
)
def test_all_units_give_backprops_gradients_in_an_exported_graph(
    name: str, cuts: tuple[str, ...], crossing: list[int]
) -> None:
    case = NETS[name]
    for unlock in ("backward", "none"):
        net = case.net(ALL, cuts, frontend="export", unlock=unlock)
        assert [len(cut.tensors) for cut in net.dni.plan.cuts] == crossing
        assert error(case.step(net), case.backprop()) < 1e-10


@pytest.mark.parametrize("name", [name for name in NAMES if name != "autoencoder"])
def test_all_units_give_backprops_gradients_without_a_graph(name: str) -> None:
    case = NETS[name]
    assert error(case.step(case.net(ALL, 2, frontend="modules")), case.backprop()) < 1e-10


# ---------------------------------------------------------------------------------------------- weights
MLP = NETS["mlp"]
NEXT = ("2", "4")  # the layer that each exit of the MLP runs, before the last one


def by_hand(model: Any, exits: Any) -> None:
    """Backward through the loss and the loss of the exit of each cut of the MLP, each segment alone.

    Args:
        exits: For each cut, the layer and the head of its exit.
    """
    h, losses = MLP.inputs[0], []
    for index, (layer, head) in enumerate(exits):
        h = torch.relu(model[2 * index](h))
        losses.append(F.cross_entropy(head(torch.relu(layer(h))), MLP.target))
        h = h.detach()
    losses.append(F.cross_entropy(model[4:](h), MLP.target))
    sum(losses).backward()


def constant(layer: nn.Module) -> nn.Module:
    return copy.deepcopy(layer).requires_grad_(False)


def own_layers(net: Any) -> list[tuple[nn.Module, nn.Module]]:
    """The layer and the head of each exit that has copies."""
    return [(net.dni.exits[i].copies.c0, net.dni.exits[i].copies.c2) for i in range(2)]


@pytest.mark.parametrize("unlock", ["backward", "none"])
def test_gradients_of_shared_weights_add_up(unlock: str) -> None:
    net, model = MLP.net("exit(weights='shared')", unlock=unlock), MLP.model()
    assert [run_twice(cut).exit.borrowed for cut in net.dni.plan.cuts] == [("2", "7", "8"), ("4", "7", "8")]
    by_hand(model, [(model[2], model[8]), (model[4], model[8])])
    assert error(MLP.step(net), gradients(model)) < 1e-12
    assert not any("dni" in name for name in net.state_dict())
    assert len(list(net.parameters())) == len(list(model.parameters()))


def test_readonly_weights_get_no_gradient_from_exits() -> None:
    net, model = MLP.net("exit(weights='readonly')"), MLP.model()
    by_hand(model, [(constant(model[2]), constant(model[8])), (constant(model[4]), constant(model[8]))])
    assert error(MLP.step(net), gradients(model)) < 1e-12


@pytest.mark.parametrize("weights", ["copy", "fresh"])
def test_copies_are_trained_themselves(weights: str) -> None:
    torch.manual_seed(3)
    net, model = MLP.net(f"exit(weights={weights!r})"), MLP.model()
    exits = copy.deepcopy(own_layers(net))
    same = [
        torch.equal(layer.weight, net.get_submodule(name).weight) for (layer, _), name in zip(exits, NEXT, strict=True)
    ]
    assert same == [weights == "copy"] * 2
    by_hand(model, exits)
    assert error(MLP.step(net), gradients(model)) < 1e-12
    for own, expected in zip(own_layers(net), exits, strict=True):
        for layer, other in zip(own, expected, strict=True):
            assert error(gradients(layer), gradients(other)) < 1e-12
    assert set(net.state_dict()) > set(model.state_dict())  # the copies are saved


def test_ema_follows_the_weights() -> None:
    net, model = MLP.net("exit(weights='ema')"), MLP.model()
    exits = [(constant(model[2]), constant(model[8])), (constant(model[4]), constant(model[8]))]
    by_hand(model, exits)
    assert error(MLP.step(net), gradients(model)) < 1e-12
    torch.optim.SGD(net.parameters(), 1.0).step()
    MLP.step(net)
    for own, before, name in zip(own_layers(net), exits, NEXT, strict=True):
        now = net.get_submodule(name).weight
        assert torch.allclose(own[0].weight, 0.995 * before[0].weight + 0.005 * now, rtol=1e-12)
        assert not own[0].weight.requires_grad
    assert not torch.allclose(before[0].weight, now)


class NormInTail(nn.Module):
    """Residual layers, and batch norm behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.tail = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + torch.relu(layer(x))
        return self.tail(x)


def test_auto_copies_weights_where_features_are_not_alike() -> None:
    """Where there is batch norm before the tail, or no sum; but not where an exit runs all that is above the cut."""

    def weights(net: Any) -> list[str]:
        return [cut.exit.weights for cut in net.dni.plan.cuts]

    assert weights(NETS["resnet"].net("exit")) == ["copy", "shared"]
    assert weights(MLP.net("exit(units=0)")) == ["copy", "copy"]
    for units in (0, 1):
        net = dni_fx.transform(
            NormInTail(),
            torch.rand(8, 6),
            cuts=["add", "add_1"],
            synthesizer=f"exit(units={units})",
            loss=F.cross_entropy,
        )
        assert weights(net) == ["shared", "shared"]


# -------------------------------------------------------------------------- buffers, random numbers, writes
def buffers(module: nn.Module) -> dict[str, Tensor]:
    return {n: b.double() for n, b in module.named_buffers() if not n.startswith("dni.")}


@pytest.mark.parametrize("weights", ["shared", "readonly", "copy", "ema"])
def test_running_statistics_are_those_of_the_model(weights: str) -> None:
    case = NETS["resnet"]
    net, model = case.net(f"exit(weights={weights!r})"), case.model()
    assert any("norm" in path for path in run_twice(net.dni.plan.cuts[0]).exit.borrowed)
    for _ in range(2):
        case.step(net)
        case.value(model(*case.inputs)).backward()
    assert error(buffers(net), buffers(model)) < 1e-12
    assert int(net.blocks[1].norm1.num_batches_tracked) == 2


@pytest.mark.parametrize("frontend", ["fx", "export"])
def test_running_statistics_of_functions(frontend: str) -> None:
    """In an exported graph the buffers are arguments of a function."""
    made = replace(MLP, make=lambda: nn.Sequential(*plain_mlp()[:4], nn.BatchNorm1d(6), *plain_mlp()[4:]))
    cuts = ("1",) if frontend == "fx" else ("relu",)
    net, model = made.net("exit(units=2, weights='shared')", cuts, frontend=frontend), made.model()
    made.step(net)
    model(*made.inputs)
    assert error(buffers(net), buffers(model)) < 1e-12


def test_dropout_in_an_exit_does_not_change_what_the_model_draws() -> None:
    """Neither in the segments above, nor what is drawn after the call."""
    layers = [layer for _ in range(4) for layer in (nn.Linear(6, 6), nn.Dropout(0.5))]
    made = replace(MLP, make=lambda: nn.Sequential(*copy.deepcopy(layers), nn.Linear(6, 3)).double())
    net, model = made.net("exit(units=2)"), made.model()
    assert "3" in net.dni.plan.cuts[0].exit.borrowed
    results = []
    for module, context in ((net, made.context), (model, {})):
        torch.manual_seed(5)
        results.append((module(*made.inputs, **context), torch.rand(1)))
    assert torch.equal(results[0][0], results[1][0]) and results[0][1] == results[1][1]


@pytest.mark.parametrize("units", [0, 1, "'all'"])
@pytest.mark.parametrize("unlock", ["backward", "none"])
def test_writes_in_place_right_after_a_cut(units: int | str, unlock: str) -> None:
    found = []
    for inplace in (True, False):
        made = Case("inplace", lambda inplace=inplace: plain_mlp(inplace), MLP.inputs, MLP.target, [], MLP.loss)
        net = made.net(f"exit(units={units})", ("0", "4"), unlock=unlock)
        assert net.dni.plan.cuts[0].exit.writes == inplace
        found.append(made.step(net))
    assert error(*found) < 1e-12


@pytest.mark.parametrize("units", [0, 1])
@pytest.mark.parametrize("cuts", [("blocks.0", "blocks.1"), ("add", "blocks.2")])
def test_writes_in_place_right_after_a_sum_that_is_left_out(units: int, cuts: tuple[str, str]) -> None:
    """They must not write to the tensor at the cut, nor to a value that is used again."""
    found = []
    for inplace in (True, False):
        made = replace(NETS["resnet"], make=lambda inplace=inplace: ResNet(inplace))
        at = tuple("add_" if name == "add" and inplace else name for name in cuts)
        net = made.net(f"exit(units={units}, weights='readonly')", at)
        assert net.dni.plan.cuts[0].exit.bypassed
        found.append(made.step(net))
    assert error(*found) < 1e-12


class ReadAgain(nn.Module):
    """A value at a cut is read again after the write to the sum that it replaces."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(6, 6), nn.Linear(12, 3)
        self.b = nn.Sequential(nn.Linear(6, 60), nn.Tanh(), nn.Linear(60, 6))
        self.relu = nn.ReLU(inplace)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.c(torch.cat([self.relu(h + self.b(h)), h], 1))


def test_a_value_that_replaces_another_is_read_again_after_a_write() -> None:
    found = []
    for inplace in (True, False):
        net = replace(MLP, make=lambda inplace=inplace: ReadAgain(inplace)).net("exit(units=0)", ("a",))
        assert net.dni.plan.cuts[0].exit.bypassed == {"add": "a"}
        found.append(MLP.step(net))
    assert error(*found) < 1e-12
