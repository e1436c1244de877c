"""Flow graphs by hand, for tests of the search for cuts and of the cost model."""

from dataclasses import replace
from typing import Any

from dni_fx.partition.flow_node import FlowNode, add_flow_node, flow_node

Flow = Any  # "networkx.DiGraph[str]"


def add(flow: Flow, name: str, sources: tuple[str, ...] = (), **changes: Any) -> None:
    """Add a node with a value of its own that carries gradient and may be cut, but for the changes."""
    plain: dict[str, Any] = {
        "bytes": 4,
        "has_matrix": bool(changes.get("parameters")),
        "carries_gradient": True,
        "can_have_synthesizer": True,
        "description": "a float32 tensor of shape [1]",
        "storages": frozenset({len(flow)}),
    }
    add_flow_node(flow, name, FlowNode(**plain | changes))
    flow.add_edges_from((source, name) for source in sources)


def change(flow: Flow, name: str, **changes: Any) -> None:
    add_flow_node(flow, name, replace(flow_node(flow, name), **changes))
