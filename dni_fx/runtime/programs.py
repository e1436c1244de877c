"""Programs: nodes of a net as graphs without modules, whose placeholders take the modules, parameters and buffers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import handle_torch_function, has_torch_function

from dni_fx.model import at_path
from dni_fx.passes.boundary import origin
from dni_fx.plans import ExitPlan

__all__ = ["call", "call_unchanged", "exit_program", "heads_program", "placeholders"]


def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Call a module that a placeholder takes."""
    if has_torch_function((module, *args)):  # a copy of the program is traced
        return handle_torch_function(call, (module, *args), module, *args, **kwargs)
    return module(*args, **kwargs)


def placeholders(net: nn.Module, borrowed: Mapping[str, fx.Node]) -> Callable[[fx.Node], fx.Node]:
    """A function that finds the placeholder for the submodule, parameter or buffer of a net that a node names.

    By object: a tied weight has several paths, of which a saved net knows one.

    Args:
        borrowed: The placeholders by path.
    """
    by_object = {id(at_path(net, path)): node for path, node in borrowed.items()}
    return lambda node: by_object[id(at_path(net, str(node.target)))]


def call_unchanged(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Call a module of the model, whose buffers stay as they are: the exit must not move running statistics."""
    if has_torch_function((module, *args)):  # a copy of the program is traced
        return handle_torch_function(call_unchanged, (module, *args), module, *args, **kwargs)
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    if not (buffers and module.training):
        return module(*args, **kwargs)
    return torch.func.functional_call(module, buffers, args, kwargs)


def heads_program(net: fx.GraphModule, plan: ExitPlan, tensors: Sequence[str]) -> fx.Graph:
    """The heads of an exit on the crossing tensors, as a graph with the outputs of the model."""
    graph = fx.Graph()
    inputs = [graph.placeholder(name) for name in tensors]
    heads = [graph.placeholder(f"head_{index}") for index in range(len(plan.heads))]
    values = {o.node: graph.call_function(call, (h, *inputs)) for o, h in zip(plan.heads, heads, strict=True)}
    graph.output(fx.node.map_arg(net.graph.output_node().args[0], lambda node: values[origin(node).name]))
    return graph


def exit_program(net: fx.GraphModule, plan: ExitPlan, tensors: Sequence[str]) -> fx.Graph:
    """The nodes of an exit as a graph without modules: placeholders take the modules and parameters."""
    graph = fx.Graph()
    by_name = {node.name: node for node in net.graph.nodes}
    values: dict[str, fx.Node] = {name: graph.placeholder(name) for name in (*tensors, *plan.inputs)}
    borrowed = {path: graph.placeholder(f"borrowed_{index}") for index, path in enumerate(plan.borrowed)}
    copied_paths = set(plan.copied)

    def copied(node: fx.Node) -> fx.Node:
        """A copy of a value that a node of the exit may write to in place."""
        return graph.call_method("clone", (node,)) if plan.writes else node

    values |= {name: copied(values[name]) for name in tensors}
    if plan.writes or any("batch_norm" in str(by_name[name].target) for name in plan.nodes):
        buffers = dict(net.named_buffers()).keys() - copied_paths
        borrowed |= {p: graph.call_method("clone", (borrowed[p],)) for p in borrowed if p in buffers}

    placeholder_of = placeholders(net, borrowed)

    def value(node: fx.Node) -> fx.Node:
        node = origin(node)
        if node.op == "get_attr":
            return placeholder_of(node)
        if node.name not in values and node.name in plan.bypassed:
            values[node.name] = copied(value(by_name[plan.bypassed[node.name]]))
        return values[node.name]

    for name in plan.nodes:
        node = by_name[name]
        if node.op == "call_module":
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
            calling = call if str(node.target) in copied_paths else call_unchanged
            values[name] = graph.call_function(calling, (placeholder_of(node), *args), kwargs)
        else:
            values[name] = graph.node_copy(node, value)
    result = net.graph.output_node().args[0] if not plan.loss else by_name[plan.loss]
    graph.output(fx.node.map_arg(result, value))
    return graph
