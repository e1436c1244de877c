"""The nodes of a page: what each is, where it stands, and what it takes."""

import pytest
import torch
from nets import Nested, ResNet

import dni_fx
from dni_fx.model.inputs import to_inputs
from dni_fx.page.nodes import nodes_of
from dni_fx.planning import Request, capture_and_plan

X = torch.rand(4, 6)


@pytest.mark.parametrize("frontend", ["fx", "export"])
def test_nodes_of_a_captured_graph(frontend: str) -> None:
    module, plan = capture_and_plan(ResNet(), to_inputs((X,), None), Request(2, frontend=frontend))
    nodes = nodes_of(module.graph, plan)
    names = [node.name for node in nodes]
    assert {node.segment for node in nodes} == {0, 1}
    assert all(set(node.sources) <= set(names[:k]) for k, node in enumerate(nodes))
    assert all(node.shape is not None and node.dtype for node in nodes if node.flops)
    calls = [node for node in nodes if node.operation in ("Linear", "linear")]
    assert all(node.flops and node.parameters and node.line[0].startswith("nets.py:") for node in calls)
    assert any(node.scope and node.scope[-1][1] == "Residual" for node in nodes)
    assert sum(node.keeps for node in nodes) == sum(segment.activation_bytes for segment in plan.segments)


def test_a_rewritten_graph_has_the_nodes_of_the_model() -> None:
    """What the rewrite adds between two nodes is left out."""
    module, plan = capture_and_plan(ResNet(), to_inputs((X,), None), Request(2))
    before = nodes_of(module.graph, plan)
    net = dni_fx.transform(ResNet(), X, cuts=2)
    after = nodes_of(net.graph, net.dni.plan)
    assert [(node.name, node.sources, node.segment) for node in after] == [
        (node.name, node.sources, node.segment) for node in before
    ]


def test_a_graph_without_records() -> None:
    net = dni_fx.transform(Nested(), X, cuts=2)
    for node in net.graph.nodes:
        node.meta.clear()
    nodes = nodes_of(net.graph, net.dni.plan)
    assert len(nodes) > 3 and all(node.shape is None and not node.flops for node in nodes)
