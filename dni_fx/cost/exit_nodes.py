"""What the exits of a model depend on in its graph: batch norm, the last linear layer, the target, borrowed values."""

from collections.abc import Mapping, Set
from typing import Any

from torch import fx, nn

from dni_fx.graph import operation_name, record_of, returned_nodes
from dni_fx.model import at_path
from dni_fx.runtime import DecoupledModule, is_linear

__all__ = ["has_residual_sums", "input_like_output", "is_batch_norm", "large_layer", "last_linear", "values_used"]

_MANY_WEIGHTS = 2**22  # 16 MiB of gradient in float32; GPT-2 small: 2**25


def values_used(nodes: Mapping[str, fx.Node], known: Set[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The values without gradient, and the submodules and tensors of the model, that nodes use.

    Args:
        known: Other values that the nodes use, with gradient.
    """
    inputs: dict[str, None] = {}
    borrowed: dict[str, None] = {}
    for node in nodes.values():
        if node.op == "call_module":
            borrowed[str(node.target)] = None
        for source in node.all_input_nodes:
            if source.op == "get_attr":
                borrowed[str(source.target)] = None
            elif source.name not in known and source.name not in nodes:
                inputs[source.name] = None
    return tuple(inputs), tuple(borrowed)


def is_batch_norm(node: fx.Node) -> bool:
    """Whether a node uses the statistics of a batch."""
    if node.op != "call_module":
        return "batch_norm" in operation_name(node)
    owner: Any = node.graph.owning_module
    return any(isinstance(one, nn.modules.batchnorm._BatchNorm) for one in owner.get_submodule(node.target).modules())


def has_residual_sums(node: fx.Node) -> bool:
    """Whether a node is a layer of torch.nn with residual sums inside."""
    if node.op != "call_module":
        return False
    owner: Any = node.graph.owning_module
    return isinstance(owner.get_submodule(node.target), nn.TransformerEncoderLayer | nn.TransformerDecoderLayer)


def last_linear(net: DecoupledModule) -> str:
    """The node of the linear layer that computes the one output; empty: there is none."""
    (node, *others) = returned_nodes(net.graph)
    if others or node.op not in ("call_function", "call_module"):
        return ""
    if node.op == "call_module":
        return node.name if is_linear(at_path(net, str(node.target))) else ""
    return node.name if operation_name(node) == "linear" else ""


def large_layer(net: DecoupledModule, name: str) -> tuple[str, ...]:
    """The module or the parameters of the layer at a node, if they are so large that an exit should not train them."""
    if not name:
        return ()
    node = next(node for node in net.graph.nodes if node.name == name)
    _, paths = values_used({name: node}, set())
    values = [at_path(net, path) for path in paths]
    tensors = [t for value in values for t in (value.parameters() if isinstance(value, nn.Module) else [value])]
    return paths if sum(tensor.numel() for tensor in tensors) >= _MANY_WEIGHTS else ()


def input_like_output(graph: fx.Graph) -> str:
    """The input that is the target of an autoencoder: the first one, if it has the form of the one output."""
    outputs = returned_nodes(graph)
    first = next((node for node in graph.nodes if node.op == "placeholder" and record_of(node).shape), None)
    if len(outputs) != 1 or first is None or len(record_of(first).shape or ()) < 2:
        return ""
    records = record_of(first), record_of(outputs[0])
    return first.name if records[0].shape == records[1].shape and records[0].dtype == records[1].dtype else ""
