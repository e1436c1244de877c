"""Generated code: names of arguments and nodes that the code needs for something else."""

import pytest
import torch
from torch import fx

from dni_fx.runtime.generated import free_reserved_name, is_reserved, unusable_argument


def graph_of(argument: str, *, uses_device: bool = False) -> fx.Graph:
    graph = fx.Graph()
    x = graph.create_node("placeholder", argument)
    value = graph.call_function(torch.relu, (x,))
    if uses_device:
        value = graph.call_method("to", (value,), {"device": torch.device("cpu")})
    graph.output(value)
    return graph


@pytest.mark.parametrize("name", ["x", "input", "é", "dni", "graph", "device", "list"])
def test_arguments_that_code_can_have(name: str) -> None:
    assert unusable_argument(graph_of(name)) is None


@pytest.mark.parametrize("name", ["torch", "self", "x-", "class", "", "1", "dni_fx", "*x"])
def test_arguments_that_code_cannot_have(name: str) -> None:
    assert unusable_argument(graph_of(name)) == name


def test_an_argument_that_hides_a_name_which_the_code_uses() -> None:
    assert unusable_argument(graph_of("device", uses_device=True)) == "device"


@pytest.mark.parametrize("name", ["self", "dni_fx", "dni_fx_ops"])
def test_a_node_gets_another_name(name: str) -> None:
    node = next(iter(graph_of("x").nodes))
    node.name = name
    free_reserved_name(node)
    assert node.name == f"value_{name}"


def test_names_that_a_graph_module_needs() -> None:
    reserved = ("code", "graph.weight", "meta", "_code", "block.class.weight", 'q"t', "recompile")
    assert all(map(is_reserved, reserved))
    assert not any(map(is_reserved, ("weight", "block.code.weight", "a-b", "0.bias")))
