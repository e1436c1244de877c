"""Run passes in order, and check the graph after each."""

from collections.abc import Sequence

from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassBase

from dni_fx.passes.spec import check

__all__ = ["run"]


def run(module: GraphModule, passes: Sequence[PassBase]) -> None:
    """Apply `passes` to `module.graph`, and recompile it.

    torch.fx's PassManager does the same, but turns every error into a bare Exception.

    Raises:
        AssertionError: If a pass left a graph that breaks a rule of `spec`: a bug of that pass.
    """
    for one in passes:
        one(module)
        module.graph.lint()
        check(module, after=type(one).__name__)
    module.recompile()
