"""Plan a model on fake tensors, which take no memory, and simulate a step of it."""

import contextlib
import sys
from typing import TYPE_CHECKING

from dni_fx.cli.pages import PageWriter
from dni_fx.cli.progress import ShowStage
from dni_fx.cli.targets import load_target

if TYPE_CHECKING:
    from dni_fx.bench import Simulation
    from dni_fx.planning import Request
    from dni_fx.plans import Plan

__all__ = ["plan_on_fake_tensors"]


def plan_on_fake_tensors(
    target: str, specs: list[str] | None, request: "Request", show: ShowStage, page: PageWriter
) -> "tuple[Plan, Simulation]":
    """The plan of the rewritten target, and the memory of a simulated step.

    A model that the target makes has fake parameters from the start, unless its code needs values.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    from dni_fx import bench, compiler
    from dni_fx.model import any_fake
    from dni_fx.planning import capture_and_plan

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    model, example = load_target(target, specs, show, mode)
    is_fake = any_fake(model.parameters())
    with mode if is_fake else contextlib.nullcontext(), contextlib.redirect_stdout(sys.stderr):
        if is_fake:
            example = example.map(mode.from_tensor)
        show("capturing")
        module, plan = capture_and_plan(model, example, request)
        page.take_graph(module.graph, plan)
        net = compiler.rewrite(module, plan, request.synthesizer, request.settings)
        show("simulating a step")
        return net.dni.plan, bench.simulate(model, net, example, request.settings.loss)
