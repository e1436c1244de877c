"""The plain numbers from which cuts are chosen: a `FlowNode` at each node of a networkx DAG."""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

import networkx as nx

__all__ = ["FlowNode", "add_flow_node", "flow_node", "largest_parameter", "set_largest_parameter"]

_KEY = "flow_node"

_LARGEST = "largest"


@dataclass(frozen=True)
class FlowNode:
    """The numbers of one node. Each piece of memory, a storage, has a number of its own."""

    # What the node costs.
    forward: float = 0.0  # FLOPs, or measured seconds
    backward: float = 0.0
    owns: Mapping[int, int] = field(default_factory=dict)  # storage: bytes, of the memory that the node allocates
    saves: Mapping[int, int] = field(default_factory=dict)  # storage: bytes, that autograd keeps from this node on
    gradient: int = 0  # bytes of the gradients of the trainable parameters that this node is the first to use
    is_sum: bool = False  # the gradient of the sum is also the gradient of each term
    is_layer: bool = False  # the node multiplies with a weight matrix
    mixes: bool = False  # the node mixes positions, such as attention
    takes_part: bool = False  # the value is one position, or another single part, of an operand
    kind: str = ""  # of the operation, with the dtype and shape of the value

    # Where the graph can be cut.
    bytes: int = 0  # of the node's value
    parameters: int = 0  # number of trainable parameters that the node uses
    has_matrix: bool = False  # one of these parameters has two or more dimensions
    carries_gradient: bool = False  # the value needs a synthesizer where it crosses a cut
    can_have_synthesizer: bool = False  # the value is one floating-point tensor
    is_tuple: bool = False  # the value is not one tensor
    description: str = ""  # of the value, for messages
    storages: Set[int] = frozenset()  # that the value lies in
    mutates: Set[int] = frozenset()  # storages that the node writes to
    is_state: bool = False  # the graph returns the value, detached, as the state for the next call
    obstacle: str = ""  # why no cut may separate the node from its users; empty: nothing forbids one
    gradient_from: str = ""  # the later node that makes the value carry gradient, by a write into its memory


def add_flow_node(flow: "nx.DiGraph[str]", name: str, node: FlowNode) -> None:
    """Add a node, or replace the `FlowNode` of a node."""
    flow.add_node(name, **{_KEY: node})


def flow_node(flow: "nx.DiGraph[str]", name: str) -> FlowNode:
    """The `FlowNode` of a node."""
    node: FlowNode = flow.nodes[name][_KEY]
    return node


def set_largest_parameter(flow: "nx.DiGraph[str]", nbytes: int) -> None:
    """Set the bytes of the largest trainable parameter."""
    flow.graph[_LARGEST] = nbytes


def largest_parameter(flow: "nx.DiGraph[str]") -> int:
    """The bytes of the largest trainable parameter."""
    nbytes: int = flow.graph[_LARGEST]
    return nbytes
