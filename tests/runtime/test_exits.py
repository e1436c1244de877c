"""Exits at work: all units give backprop's gradients; weights, random numbers, buffers, losses and copies of a net."""

import pytest
from exit_nets import NAMES, NETS, error

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
