"""The check of a graph: targets are found whatever their names."""

import pytest
from torch import fx, nn

from dni_fx.graph.lint import lint


def graph_that_calls(target: str) -> fx.Graph:
    graph = fx.Graph()
    graph.output(graph.call_module(target, (graph.placeholder("x"),)))
    return graph


def test_a_submodule_with_the_name_of_an_attribute() -> None:
    owner = fx.GraphModule(nn.Module(), fx.Graph())
    graph = graph_that_calls("code")
    owner._modules["code"] = nn.Linear(2, 2)
    graph.owning_module = owner
    with pytest.raises(RuntimeError):
        graph.lint()
    lint(graph)
    assert graph.owning_module is owner


def test_a_target_that_is_not_there() -> None:
    graph = graph_that_calls("absent")
    graph.owning_module = fx.GraphModule(nn.Module(), fx.Graph())
    with pytest.raises(RuntimeError, match="absent"):
        lint(graph)


def test_an_argument_before_its_definition() -> None:
    graph = graph_that_calls("absent")
    first, second, _ = graph.nodes
    second.append(first)
    with pytest.raises(RuntimeError, match="before"):
        lint(graph)
