"""Trace generated code again, to get the graph of an unpickled or loaded module."""

from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn

__all__ = ["rename", "retrace"]


class _Operators:
    """Stands for `torch`, or for a plain function, while generated code is traced: each call becomes one node.

    Of `torch`, this holds for `torch.ops` and `torch.amp`: their functions do not notice proxies inside lists.
    """

    def __init__(self, tracer: fx.Tracer, original: Any) -> None:
        self.tracer, self.original = tracer, original

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self.original, name)
        if self.original is torch and name not in ("ops", "amp"):
            return attribute
        return _Operators(self.tracer, attribute)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.tracer.create_proxy("call_function", self.original, args, kwargs)


class _AllLeaves(fx.Tracer):
    """Makes every module a leaf."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


class _Reads(dict[str, Tensor | None]):
    """Parameters or buffers by name: each read of one is a node."""

    def __init__(self, tensors: Mapping[str, Tensor | None], tracer: fx.Tracer, names: Mapping[int, str]) -> None:
        super().__init__(tensors)
        self.tracer, self.names = tracer, names

    def __getitem__(self, name: str) -> Any:
        tensor = super().__getitem__(name)
        return tensor if tensor is None else self.tracer.create_proxy("get_attr", self.names[id(tensor)], (), {})


def _skeleton(module: nn.Module, tracer: fx.Tracer, names: Mapping[int, str]) -> nn.Module:
    """The same tree of plain modules, since the `__call__` of the user's modules may do more than call forward."""
    copy = nn.Module()
    for kind in ("_parameters", "_buffers"):
        copy.__dict__[kind] = _Reads(getattr(module, kind), tracer, names)
    copy.__dict__.update({name: value for name, value in vars(module).items() if isinstance(value, Tensor)})
    for name, child in module._modules.items():
        copy._modules[name] = child if child is None else _skeleton(child, tracer, names)
    return copy


def retrace(module: nn.Module, forward: Callable[..., Any]) -> fx.Graph:
    """The graph of generated code that reads the modules and attributes of `module`."""
    state = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    tracer = _AllLeaves()
    code: Any = forward
    functions = {k: _Operators(tracer, v) for k, v in code.__globals__.items() if isinstance(v, FunctionType)}
    names = {**code.__globals__, **functions, "torch": _Operators(tracer, torch)}
    traced = FunctionType(code.__code__, names, "forward", code.__defaults__)
    shell = type("Shell", (nn.Module,), {"forward": traced})()
    shell.__dict__.update(_skeleton(module, tracer, {id(tensor): name for name, tensor in reversed(state)}).__dict__)
    graph = tracer.trace(shell)
    graph._tracer_cls = None
    return graph


def rename(graph: fx.Graph, names: list[str]) -> None:
    """Name the nodes of a graph that `retrace` made as they are named in the generated code."""
    for node in graph.nodes:  # first to unique names, since a later node may have the name
        node.name = f"dni_renaming_{node.name}"
    for node, name in zip(graph.nodes, names, strict=True):
        node.name = name
