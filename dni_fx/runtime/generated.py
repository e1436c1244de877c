"""The Python code of a graph, which works whatever the names of submodules, parameters, buffers and nodes."""

import builtins
import io
import itertools
import keyword
import re
import tokenize
from dataclasses import replace
from typing import Any

from torch import fx, nn
from torch.fx.graph import CodeGen, PythonCode

from dni_fx.model import expression, has_path

__all__ = ["OF_GRAPH_MODULE", "AnyNames", "free_reserved_name", "is_reserved", "unusable_argument"]

# What torch.fx keeps on a GraphModule; a submodule, parameter or buffer may have one of these names.
OF_GRAPH_MODULE = {"graph", *vars(fx.GraphModule(nn.Module(), fx.Graph()))} - set(vars(nn.Module()))

_STANDS_FOR = "dni_fx_target_"  # the attribute in the code of torch.fx that an expression replaces


class AnyNames(CodeGen):
    """Generates code that finds every submodule, parameter and buffer.

    The code of torch.fx reads attributes: no attribute is a keyword, and the class may have another of the same name.
    """

    def _gen_python_code(self, nodes: Any, root_module: str, *args: Any, **kwargs: Any) -> PythonCode:
        owner = nodes.graph.owning_module
        targets: dict[fx.Node, str] = {}
        expressions: list[str] = []
        for node in nodes if owner is not None else ():
            if node.op in ("get_attr", "call_module") and has_path(owner, node.target):
                found = expression(root_module, owner, node.target)
                if found != f"{root_module}.{node.target}":
                    targets[node] = node.target
                    expressions.append(found)
        try:
            for index, node in enumerate(targets):
                node.target = f"{_STANDS_FOR}{index}"
            code = super()._gen_python_code(nodes, root_module, *args, **kwargs)
        finally:
            for node, target in targets.items():
                node.target = target
        text = re.sub(rf"\b{root_module}\.{_STANDS_FOR}(\d+)\b", lambda match: expressions[int(match[1])], code.src)
        return replace(code, src=text)


def is_reserved(path: str) -> bool:
    """Whether a plain GraphModule cannot hold a parameter or buffer at this path, or its code cannot read the path."""
    names = path.split(".")
    odd = any(keyword.iskeyword(n) or not n.isprintable() or {'"', "\\"} & set(n) for n in names)
    return odd or names[0] in OF_GRAPH_MODULE or hasattr(fx.GraphModule, names[0])


def free_reserved_name(node: fx.Node) -> None:
    """Rename a node whose variable would hide `self` or the package in generated code."""
    if node.name == "self" or node.name.startswith("dni_fx"):
        node.name = node.graph._graph_namespace.create_name(f"value_{node.name}", None)


def unusable_argument(graph: fx.Graph) -> str | None:
    """The first argument that generated code cannot have: no identifier, or a name that the code needs itself."""
    code = graph.python_code("self")
    for node in graph.nodes:
        name = str(node.target)
        if node.op != "placeholder":
            continue
        if not name.isidentifier() or keyword.iskeyword(name) or name == "self" or name.startswith("dni_fx"):
            return name
        # The code has `torch_1 = torch` for an argument whose name stands for something else.
        if (name in code.globals or hasattr(builtins, name)) and _reads(code.src, name) > 2:
            return name
    return None


def _reads(text: str, name: str) -> int:
    """How often a name stands in code, but not as an attribute."""
    tokens = [token.string for token in tokenize.generate_tokens(io.StringIO(text).readline)]
    return sum(token == name and before != "." for before, token in itertools.pairwise(tokens))
