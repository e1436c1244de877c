"""Trace generated code again: from the forward of a copied or unpickled module to its graph."""

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn

__all__ = ["rename", "retrace"]


class _Operators:
    """Stands for `torch` while generated code is traced: each call under `torch.ops` and `torch.amp` becomes one node.

    Those do not see proxies by themselves where they are inside of lists. For a function of the person's own that was
    not traced into, too.
    """

    def __init__(self, tracer: fx.Tracer, home: Any) -> None:
        self.tracer, self.home = tracer, home

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.home, name)
        return _Operators(self.tracer, found) if self.home is not torch or name in ("ops", "amp") else found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.tracer.create_proxy("call_function", self.home, args, kwargs)


class _AllLeaves(fx.Tracer):
    """Every module is a leaf, and every line that reads a parameter or buffer is one node."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names = names

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if isinstance(attr_val, Tensor) and id(attr_val) in self.names:
            return self.create_proxy("get_attr", self.names[id(attr_val)], (), {})
        return attr_val


def _skeleton(module: nn.Module) -> nn.Module:
    """The same tree of plain modules: the person's own may do more than call forward when they are called."""
    bare = nn.Module()
    bare._parameters, bare._buffers = dict(module._parameters), dict(module._buffers)
    bare.__dict__.update({name: value for name, value in vars(module).items() if isinstance(value, Tensor)})
    for name, child in module._modules.items():
        bare._modules[name] = child if child is None else _skeleton(child)
    return bare


def retrace(module: nn.Module, forward: Callable[..., Any]) -> fx.Graph:
    """The graph of generated code, for the modules and attributes of `module`."""
    state = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    tracer = _AllLeaves({id(tensor): name for name, tensor in reversed(state)})
    code: Any = forward
    functions = {k: _Operators(tracer, v) for k, v in code.__globals__.items() if isinstance(v, FunctionType)}
    names = {**code.__globals__, **functions, "torch": _Operators(tracer, torch)}
    traced = FunctionType(code.__code__, names, "forward", code.__defaults__)
    shell = type("Shell", (nn.Module,), {"forward": traced})()
    shell.__dict__.update(_skeleton(module).__dict__)
    graph = tracer.trace(shell)
    graph._tracer_cls = None
    return graph


def rename(graph: fx.Graph, names: list[str]) -> None:
    """Give a graph that was traced again from generated code the node names of the code."""
    for node in graph.nodes:  # out of the way first: a name may be taken by a later node
        node.name = f"dni_renaming_{node.name}"
    for node, name in zip(graph.nodes, names, strict=True):
        node.name = name
