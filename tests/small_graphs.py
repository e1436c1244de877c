"""Graphs of a few nodes, built by hand, each node with its record; and their nodes as lines of text."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from dni_fx.graph import NodeRecord, set_record
from dni_fx.ops import Segment


class Zeros(nn.Module):
    """A synthesizer that predicts zeros in training, and nothing in eval mode."""

    _is_impure = True

    def forward(self, h: Tensor, context: Tensor | None = None) -> Tensor | None:
        return torch.zeros_like(h, requires_grad=True) if self.training else None


class TimeEnds(nn.Module):
    """Both ends of a cut in time, which pass the values on and detach the states."""

    def enter(self, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(states)

    def leave(self, outputs: Sequence[Tensor], states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (*outputs, *(state.detach() for state in states))


class SmallGraph:
    """Adds nodes one by one.

    Every method takes the fields of the node's record as keywords. Calls carry gradient unless a keyword says no.
    """

    def __init__(self, **modules: nn.Module) -> None:
        self.root, self.graph = nn.Module(), Graph()
        for name, module in modules.items():
            self.root.add_module(name, module)
        self.dni = nn.Module()
        for cut in range(3):
            self.dni.add_module(f"segment{cut}", Segment())
            self.dni.add_module(f"time{cut}", TimeEnds())
            for name in "hr":
                self.dni.add_module(f"cut{cut}_{name}", Zeros())

    def input(self, name: str, **record: Any) -> Node:
        return _recorded(self.graph.placeholder(name), record)

    def attribute(self, target: str, **record: Any) -> Node:
        return _recorded(self.graph.get_attr(target), record)

    def call(self, function: Callable[..., Any], *args: Any, name: str | None = None, **record: Any) -> Node:
        node = self.graph.create_node("call_function", function, args, name=name)
        return _recorded(node, {"carries_gradient": True} | record)

    def method(self, target: str, *args: Any, name: str | None = None, **record: Any) -> Node:
        node = self.graph.create_node("call_method", target, args, name=name)
        return _recorded(node, {"carries_gradient": True} | record)

    def module(self, target: str, *args: Any, name: str | None = None, **record: Any) -> Node:
        node = self.graph.create_node("call_module", target, args, name=name)
        return _recorded(node, {"carries_gradient": True} | record)

    def give(self, value: Any, **record: Any) -> GraphModule:
        """The finished module, with everything that passes call under `dni`."""
        _recorded(self.graph.output(value), record)
        self.root.add_module("dni", self.dni)
        module = GraphModule(self.root, self.graph)
        module.add_module("dni", self.dni)
        return module


def _recorded(node: Node, record: dict[str, Any]) -> Node:
    sets = {key: frozenset(value) for key, value in record.items() if key in ("storages", "mutates")}
    set_record(node, NodeRecord(**(record | sets)))
    return node


def three_nodes(**record: Any) -> GraphModule:
    """A perceptron, x -> h -> r -> y; keywords are for the record of h."""
    small = SmallGraph(first=nn.Linear(3, 4), second=nn.Linear(4, 2))
    h = small.module("first", small.input("x"), name="h", **record)
    y = small.module("second", small.call(torch.relu, h, name="r"), name="y")
    return small.give(y)


def lines(module: GraphModule) -> list[str]:
    """The nodes in order, as in `h = relu(x)`; an input is its name alone."""
    return [_line(node) for node in module.graph.nodes]


def _line(node: Node) -> str:
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    if node.op == "placeholder":
        return node.name
    if node.op == "output":
        return f"return {node.args[0]}"
    if node.op == "get_attr":
        return f"{node.name} = {target}"
    arguments = [*map(str, node.args), *(f"{key}={value}" for key, value in node.kwargs.items())]
    method = "." if node.op == "call_method" else ""
    return f"{node.name} = {method}{target}({', '.join(arguments)})"


def records(module: GraphModule, field: str) -> dict[str, Any]:
    """That field of every node's record, by the name of the node."""
    return {node.name: getattr(node.meta["dni"], field) for node in module.graph.nodes}


def runs(module: GraphModule, *inputs: Any) -> Any:
    """What the graph gives now."""
    module.graph.lint()
    module.recompile()
    return module(*inputs)
