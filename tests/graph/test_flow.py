"""The graph in networkx: what each node owes to its parameters, its users, and to the states."""

import torch
from nets import TiedWeights, two_layers
from torch import nn

from dni_fx.capture.frontends import capture
from dni_fx.graph.flow import dataflow
from dni_fx.model.inputs import to_inputs
from dni_fx.partition.flow_node import flow_node

X = torch.rand(4, 6)


def graph_of(model: nn.Module) -> torch.fx.Graph:
    return capture(model, to_inputs(X, None)).module.graph


def test_nodes_in_order_with_their_parameters() -> None:
    graph = graph_of(two_layers())
    flow = dataflow(graph)
    assert list(flow) == [node.name for node in graph.nodes]
    assert [flow_node(flow, name).parameters for name in flow] == [0, 2, 0, 2, 0]
    assert flow_node(flow, "_0").bytes == 4 * 8 * 4 and flow_node(flow, "_0").has_matrix
    assert flow_node(flow, "_0").gradient == 4 * (6 * 8 + 8)
    assert flow.graph["largest"] == 4 * 6 * 8


def test_a_shared_parameter_has_one_gradient() -> None:
    flow = dataflow(graph_of(TiedWeights()))
    assert flow_node(flow, "a").gradient == 4 * (36 + 6)
    assert flow_node(flow, "d").gradient == 4 * 6  # its bias alone


def test_measured_times_replace_operations() -> None:
    graph = graph_of(two_layers())
    flow = dataflow(graph, {node.name: (0.25, 0.5) for node in graph.nodes})
    assert {(flow_node(flow, name).forward, flow_node(flow, name).backward) for name in flow} == {(0.25, 0.5)}


def test_a_returned_state_is_marked() -> None:
    graph = graph_of(two_layers())
    for states, expected in ({0}, ["_2"]), (set(), []):
        flow = dataflow(graph, states=states)
        assert [name for name in flow if flow_node(flow, name).is_state] == expected
