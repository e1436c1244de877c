"""Check that a graph is well-formed."""

from torch import fx

from dni_fx.model import has_path

__all__ = ["lint"]


def lint(graph: fx.Graph) -> None:
    """Check as `Graph.lint` does, but find submodules, parameters and buffers whatever their names.

    Raises:
        RuntimeError: If the graph is not well-formed.
    """
    owner, graph.owning_module = graph.owning_module, None
    try:
        graph.lint()
    finally:
        graph.owning_module = owner
    for node in graph.nodes:
        if node.op in ("get_attr", "call_module") and owner is not None and not has_path(owner, str(node.target)):
            raise RuntimeError(f"node {node} reads {node.target}, which {type(owner).__name__} does not have")
