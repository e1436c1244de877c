"""The compiler's record of a node: `node.meta["dni"]`."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from dni_fx.plans import CrossingTensor

__all__ = [
    "NodeRecord",
    "Role",
    "crossing_tensor",
    "has_record",
    "module_calls",
    "operation_name",
    "own_loss",
    "record_of",
    "returned_nodes",
    "set_record",
]

_KEY = "dni"


def module_calls(stack: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """The module calls around a node as symbolic tracing spells them: `name` or `name@n` for call n + 1."""
    calls = {}
    for key, (name, cls) in stack.items():
        if name and not name.startswith("_empty_nn_module_stack"):  # torch.export's mark for no module
            call = f"{name}@{key.rsplit('@', 1)[1]}" if "@" in key else name
            calls[call] = (name, str(cls).rsplit(".", 1)[-1])
    return calls


Role = Literal["model", "context", "detach", "exit", "synthesizer", "boundary", "copy", "piece"]


@dataclass
class NodeRecord:
    """Facts about a node: `capture` writes the first block, `passes` the second."""

    shape: tuple[int, ...] | None = None  # of the value; None: the value is not one tensor
    dtype: torch.dtype | None = None
    device: torch.device | None = None
    owns: dict[int, int] = field(default_factory=dict)  # storage: bytes, of the memory that the node allocates
    saves: dict[int, int] = field(default_factory=dict)  # storage: bytes, that autograd keeps from this node on
    saves_again: dict[int, int] = field(default_factory=dict)  # storage: bytes, kept for this node and an earlier one
    flops: int = 0  # forward
    backward_flops: int = 0
    parameters: tuple[str, ...] = ()  # trainable parameters that the node uses
    carries_gradient: bool = False
    gradient_from: str = ""  # the later node that makes the value carry gradient, by a write into its memory
    storages: frozenset[int] = frozenset()  # that the tensors of the value lie in
    mutates: frozenset[int] = frozenset()  # storages that the node writes to
    draws: bool = False  # random numbers, in train mode
    axis: int = -1  # the feature axis of the value
    batch: int | None = 0  # the batch axis of the value; None: no axis follows the batch
    rows: int = 1  # entries of the batch axis for each sample; 0: their number varies
    reordered: bool = False  # the samples have another order than in the inputs; found if there are labels
    free: frozenset[int] = frozenset()  # other axes whose sizes may change from call to call
    scope: tuple[str, ...] = ()  # module calls around the node, outermost first: name, or name@n for call n + 1
    classes: tuple[str, ...] = ()  # their class names
    obstacle: str = ""  # why no cut may separate the node from its users; empty: nothing forbids one
    line: tuple[str, str] = ("", "")  # the place and text of the line of the person's code; empty: unknown

    role: Role = "model"
    segment: int | None = None
    cut: int | None = None  # set if the node belongs to a cut


def returned_nodes(graph: Graph) -> list[Node]:
    """The nodes whose values a graph returns, in order; a value that is returned twice is in the list twice."""
    returned: list[Node] = []
    map_arg(graph.output_node().args, returned.append)
    return returned


def own_loss(graph: Graph) -> Node | None:
    """The node of the loss that a model returns itself: the one scalar that carries gradient among its outputs.

    It is computed from all other outputs with gradient, such as the logits. A term of a loss, such as the KL divergence
    beside a reconstruction, is not.
    """
    returned = dict.fromkeys(node for node in returned_nodes(graph) if record_of(node).carries_gradient)
    scalars = [node for node in returned if record_of(node).shape == ()]
    if len(scalars) != 1:
        return None
    below, waiting = set(scalars), list(scalars)
    while waiting:
        new = set(waiting.pop().all_input_nodes) - below
        below |= new
        waiting += new
    return scalars[0] if returned.keys() <= below else None


def operation_name(node: Node) -> str:
    """The name of the function or method that a node calls, without the overload of an ATen operator."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name.split(".")[0]


def set_record(node: Node, record: NodeRecord) -> None:
    """Add a record to a node, or replace the record of a node."""
    node.meta[_KEY] = record


def has_record(node: Node) -> bool:
    """Whether a node has a record."""
    return _KEY in node.meta


def record_of(node: Node) -> NodeRecord:
    """The record of a node.

    Raises:
        KeyError: If the graph was not annotated.
    """
    record: NodeRecord = node.meta[_KEY]
    return record


def crossing_tensor(node: Node) -> CrossingTensor:
    """The tensor that a node of an annotated graph computes, as a plan holds it."""
    record = record_of(node)
    assert record.shape is not None and record.dtype is not None
    dtype, size = str(record.dtype).removeprefix("torch."), node.meta["val"].numel() * record.dtype.itemsize
    return CrossingTensor(node.name, record.shape, dtype, size, record.axis, record.batch, record.rows)
