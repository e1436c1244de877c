"""Run passes in order, and check the graph after each."""

from collections.abc import Sequence

from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassBase

from dni_fx.graph import lint
from dni_fx.passes.spec import Stage, check

__all__ = ["run"]


def run(module: GraphModule, passes: Sequence[PassBase]) -> None:
    """Apply `passes` to `module.graph`, and recompile it.

    The PassManager of torch.fx does the same, but turns every error into a bare Exception.

    Raises:
        AssertionError: A pass left a graph that breaks a rule of `spec`: a bug of that pass.
    """
    captured = {node: node.name for node in module.graph.nodes}
    done: tuple[str, ...] = ()
    for one in passes:
        one(module)
        lint(module.graph)
        done = (*done, type(one).__name__)
        check(Stage(module.graph, captured, done))
    module.recompile()
