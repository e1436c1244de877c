"""The checks of a net with exits pass, name what the exits train, and fail where an exit is broken."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from exit_nets import NETS
from torch import fx, nn

import dni_fx
from dni_fx.proof.exits import loss_of_step
from dni_fx.runtime.exits import Exit

LINE = "exits of all units give backprop's"


def checks(net: Any, inputs: Any) -> dict[str, tuple[bool, str]]:
    return {check.name: (check.passed, check.figure) for check in dni_fx.check(net, inputs).checks}


def failed(found: dict[str, tuple[bool, str]]) -> dict[str, str]:
    return {name: figure for name, (passed, figure) in found.items() if not passed}


@pytest.mark.parametrize(
    ("name", "synthesizer", "unlock", "trained"),
    [
        ("mlp", "exit", "backward", "exits also train 2.weight, 2.bias, 4.weight and 1 more"),  # copies of the others
        ("mlp", "exit(weights='shared')", "backward", "exits also train 2.weight, 2.bias, 4.weight and 3 more"),
        ("mlp", "exit(weights='readonly')", "none", "no exit trains a parameter of the model"),
        ("resnet", "exit", "backward", "exits also train blocks.1.conv1.weight"),
        ("unet", "exit", "backward", "exits also train up2.weight"),  # below, a small head
        ("own loss", "exit(units=0, weights='shared')", "none", "exits also train net.u.weight, net.u.bias"),
        ("autoencoder", "exit", "backward", "exits also train 2.weight"),
        ("two outputs", "exit(weights='ema')", "backward", "no exit trains a parameter of the model"),
        ("writes", "exit(units='all')", "none", "exits also train b.weight"),
    ],
)
def test_check_passes(name: str, synthesizer: str, unlock: str, trained: str) -> None:
    case = NETS[name]
    net = case.net(synthesizer, unlock=unlock)
    before = {n: v.clone() for n, v in net.state_dict().items()}
    found = checks(net, case.inputs)
    assert not failed(found)
    assert trained in found[LINE][1]
    assert all(torch.equal(value, before[n]) for n, value in net.state_dict().items())  # the net stays as it was
    assert all(exit.loss is not loss_of_step for exit in net.dni.exits.values())


def test_a_loss_that_is_a_module() -> None:
    case = NETS["mlp"]
    net = case.net(loss=nn.CrossEntropyLoss(weight=torch.ones(3).double()))
    assert not failed(checks(net, case.inputs))
    assert not any("loss" in name for name in net.state_dict())


def test_a_plain_cut_at_the_end_of_the_units_of_another() -> None:
    """The upper exit has units that write to the tensor at the cut, and run twice."""
    layers = [nn.Linear(6, 6), nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 6), nn.Linear(6, 3)]
    case = replace(NETS["mlp"], make=lambda: nn.Sequential(*layers).double(), cuts=["0", "1"])
    net = case.net("exit(weights='shared')")
    assert all(cut.exit.unit is None for cut in net.dni.plan.cuts)
    assert not failed(checks(net, case.inputs))


def test_no_line_without_exits() -> None:
    case = NETS["mlp"]
    assert LINE not in checks(case.net("linear"), case.inputs)


def test_units_that_an_exit_forgets_to_train_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Exit, "trained_in_units", lambda self, borrowed: [])
    found = failed(checks(NETS["mlp"].net("exit(weights='shared')"), NETS["mlp"].inputs))
    assert "where units run once, 2.weight" in found[LINE] or "where units run once, off by" in found[LINE]


def test_a_loss_of_twice_the_size_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = Exit._loss
    monkeypatch.setattr(Exit, "_loss", lambda self, *args: 2 * loss(self, *args))
    found = failed(checks(NETS["mlp"].net("exit"), NETS["mlp"].inputs))
    assert LINE in found


def test_a_value_left_out_by_mistake_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exit of all units that takes the input of an activation function for its value."""
    connect = Exit.connect

    def broken(self: Exit, net: fx.GraphModule) -> None:
        connect(self, net)
        if self.plan.units == "all":
            assert self.program is not None
            wrong = [node for node in self.program.graph.nodes if node.op == "call_function"][-2]
            wrong.replace_all_uses_with(wrong.args[1])
            self.program.recompile()

    monkeypatch.setattr(Exit, "connect", broken)
    assert LINE in failed(checks(NETS["mlp"].net("exit"), NETS["mlp"].inputs))
