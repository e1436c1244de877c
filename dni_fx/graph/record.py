"""What the compiler knows of a node: one typed record in `node.meta["dni"]`."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg

__all__ = ["NodeMeta", "Role", "given_by", "module_calls", "record_of"]


def module_calls(stack: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """The module calls around a node as symbolic tracing spells them: `name` or `name@n` for call n + 1."""
    calls = {}
    for key, (name, cls) in stack.items():
        if name:
            call = f"{name}@{key.rsplit('@', 1)[1]}" if "@" in key else name
            calls[call] = (name, str(cls).rsplit(".", 1)[-1])
    return calls


Role = Literal["model", "context", "detach", "synthesizer", "boundary", "copy", "outcome"]


@dataclass
class NodeMeta:
    """Filled in stage by stage: `costs` writes the first block, `passes` the second."""

    shape: tuple[int, ...] | None = None  # None: the value is not one tensor
    dtype: torch.dtype | None = None
    device: torch.device | None = None
    owns: dict[int, int] = field(default_factory=dict)  # bytes by storage of the memory that it makes for its output
    saves: dict[int, int] = field(default_factory=dict)  # the same of what autograd keeps for it, and for none before
    flops: int = 0  # forward
    backward_flops: int = 0
    parameters: tuple[str, ...] = ()  # trainable ones that this node uses
    carries_gradient: bool = False
    gradient_from: str = ""  # the later node that makes the value carry gradient, by a write into its memory
    storages: frozenset[int] = frozenset()  # the memory that the output's tensors live in
    mutates: frozenset[int] = frozenset()  # the memory that the node writes to
    axis: int = -1  # the feature axis of the output
    scope: tuple[str, ...] = ()  # module calls around the node, outermost first: name, or name@n for call n + 1
    classes: tuple[str, ...] = ()  # their class names
    obstacle: str = ""  # why there can be no cut between it and its users; empty: nothing stands against one

    role: Role = "model"
    segment: int | None = None
    cut: int | None = None  # set where role is not "model"


def given_by(graph: Graph) -> list[Node]:
    """The nodes that a graph gives, in order; one that it gives twice is there twice."""
    given: list[Node] = []
    map_arg(graph.output_node().args, given.append)
    return given


def record_of(node: Node) -> NodeMeta:
    """The record of a node.

    Raises:
        KeyError: The graph was not annotated.
    """
    record: NodeMeta = node.meta["dni"]
    return record
