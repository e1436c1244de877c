"""Which nodes of a graph stay in order, though none of them uses the value of another."""

import itertools
import operator
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from dni_fx.graph.record import operation_name, record_of
from dni_fx.model import at_path

__all__ = ["KeptOrder", "kept_order"]

# The modules of functions that compute a result, draw random numbers or write to their arguments, and do no more.
_KNOWN = ("torch", "torch.functional", "torch.nn.functional", "torch._ops.aten", "_operator", "builtins", "math")
_DATA = (Tensor, bool, int, float, complex, str, slice, type(None), torch.dtype, torch.device, torch.layout)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

_DRAWS, _CODE = "random draws", "calls of code that is not of torch"
_WRITES, _BUFFERS = "writes in place", "uses of one buffer"


@dataclass(frozen=True)
class KeptOrder:
    """The nodes of an annotated graph that stay in order, beside those that use the values of others.

    Attributes:
        pairs: The first node of each pair stays before the second; with the reason.
        whole: Why every node stays where it is; empty: not every node does.
    """

    pairs: dict[tuple[str, str], str]
    whole: str = ""

    @property
    def reason(self) -> str:
        """Why nodes stay in order, in words; empty: none has to."""
        kinds = list(dict.fromkeys(self.pairs.values()))
        return self.whole or (f"{' and '.join(kinds)} stay in order" if kinds else "")

    def forbids(self, graph: fx.Graph, names: Sequence[str]) -> str:
        """Why the nodes of the graph may not run in this order; empty: they may."""
        place = {name: i for i, name in enumerate(names)}
        traced = [node.name for node in graph.nodes]
        if sorted(names) != sorted(traced):
            return "it does not name each node once"
        if self.whole and list(names) != traced:
            return self.whole
        inputs = [node.name for node in graph.nodes if node.op == "placeholder"]
        if sorted(inputs, key=place.__getitem__) != inputs:
            return "the inputs are in another order"
        uses = ((source.name, node.name) for node in graph.nodes for source in node.all_input_nodes)
        for before, after in itertools.chain(uses, self.pairs):
            if place[before] > place[after]:
                return f"{after} comes before {before}"
        return "" if names[-1] == traced[-1] else "the output is not the last node"


def kept_order(graph: fx.Graph) -> KeptOrder:
    """Find the nodes that stay in order: random draws, calls of unknown code, writes in place, uses of a buffer."""
    owner: Any = graph.owning_module
    written = {storage for node in graph.nodes for storage in _written(node)}
    states = _states(graph, owner, written)
    chains: dict[tuple[str, int], list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op.startswith("call") and not _is_data(node):
            return KeptOrder({}, f"{node} changes how later nodes run")
        touched = _touched(node)
        used = [states[storage] for storage in sorted(touched & states.keys())]
        if node.op == "call_module":
            module = owner.get_submodule(str(node.target))
            used += [id(t) for t in (*module.buffers(), *module.parameters()) if id(t) in states.values()]
        keys = [(_WRITES, storage) for storage in sorted(touched & written)]
        keys += [(_BUFFERS, tensor) for tensor in dict.fromkeys(used)]
        if record_of(node).draws or _is_unknown(node, owner):
            keys.append((_DRAWS, 0))
        for key in keys:
            chains.setdefault(key, []).append(node)
    pairs: dict[tuple[str, str], str] = {}
    for (kind, _), nodes in chains.items():
        for before, after in itertools.pairwise(nodes):
            draw = record_of(before).draws and record_of(after).draws
            if before not in after.all_input_nodes:
                pairs.setdefault((before.name, after.name), _CODE if kind == _DRAWS and not draw else kind)
    return KeptOrder(pairs)


def _touched(node: fx.Node) -> frozenset[int]:
    """The storages of the value of a node, and of its operands."""
    return record_of(node).storages.union(*(record_of(source).storages for source in node.all_input_nodes))


def _written(node: fx.Node) -> frozenset[int]:
    """The storages that a node writes to, or may: a method such as `detach_` changes its operand without a write."""
    name = operation_name(node)
    changes = node.op in ("call_function", "call_method") and name.endswith("_") and not name.endswith("__")
    return _touched(node) if changes else record_of(node).mutates


def _states(graph: fx.Graph, owner: nn.Module, written: Set[int]) -> dict[int, int]:
    """The tensors of the model that a call may write to: the `id` of each, by a number of its memory.

    These are all buffers, weights that a layer keeps short, and what the graph reads and writes to.
    """
    short = (part for part in owner.modules() if getattr(part, "max_norm", None) is not None)
    of_layers = [*owner.buffers(), *(p for part in short for p in part.parameters(recurse=False))]
    found = {-1 - number: id(tensor) for number, tensor in enumerate(of_layers)}  # no number of a storage of the graph
    for node in graph.nodes:
        value = at_path(owner, str(node.target)) if node.op == "get_attr" else None
        storages = record_of(node).storages
        is_fixed = isinstance(value, nn.Parameter) and id(value) not in found.values() and not storages & written
        if isinstance(value, Tensor) and not is_fixed:
            found |= dict.fromkeys(storages, id(value))
    return found


def _is_data(node: fx.Node) -> bool:
    """Whether a call returns tensors and numbers, or writes to its operands: else it is there for something else."""
    if node.op == "call_module" or node.target is operator.getitem or record_of(node).mutates or _checks(node):
        return True
    value = node.meta.get("val")
    return value is not None and all(isinstance(leaf, _DATA) for leaf in pytree.tree_leaves(value))


def _checks(node: fx.Node) -> bool:
    """Whether a node compares an argument with the value that the graph was traced with."""
    return getattr(node.target, "__module__", "") == "dni_fx.ops" and operation_name(node) == "specialised"


def _is_unknown(node: fx.Node, owner: nn.Module) -> bool:
    """Whether a node runs code that may do anything."""
    if node.op == "call_module":
        return any(
            not type(part).__module__.startswith("torch.nn.")
            or "forward" in vars(part)
            or any(getattr(part, hooks) for hooks in _HOOKS)
            for part in owner.get_submodule(str(node.target)).modules()
        )
    module = getattr(node.target, "__module__", None) or ""
    known = module in _KNOWN or module.startswith("torch._C") or _checks(node)
    return node.op == "call_function" and not known
