"""Call the exit of every cut that has one."""

import operator
from collections.abc import Sequence

from torch.fx import Graph, GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from dni_fx.graph import NodeRecord, record_of, set_record
from dni_fx.passes.boundary import borrowed_name, end_of_segment
from dni_fx.plans import Cut, ExitPlan, exit_name

__all__ = ["AddExits"]


class AddExits(PassBase):
    """Needs: `MarkSegments`; `AddContext`, if the loss takes a target; a module `dni.<exit_name>` at each such cut.

    Leaves: at the end of the segment, or of the units above that run once, a `detach` of every tensor that gets a
    synthetic gradient (role "detach"), a call of the exit, and one element of its result a tensor (role "exit").

    Args:
        cuts: The cuts of the plan.
    """

    def __init__(self, cuts: Sequence[Cut]) -> None:
        super().__init__()
        self.cuts = cuts

    def call(self, graph_module: GraphModule) -> PassResult:
        graph = graph_module.graph
        for cut, planned in enumerate(self.cuts):
            if planned.exit is not None:
                _call_exit(graph, cut, planned.exit, [tensor.node for tensor in planned.predicted])
        return PassResult(graph_module, True)


def _call_exit(graph: Graph, cut: int, planned: ExitPlan, tensors: Sequence[str]) -> None:
    by_name = {node.name: node for node in graph.nodes}
    context = next((n for n in graph.nodes if record_of(n).role == "context"), None)
    last = end_of_segment(graph, cut) if planned.unit is None else by_name[planned.unit.nodes[-1]]
    segment = record_of(last).segment

    def add(op: str, target: object, args: tuple[object, ...], name: str, role: str = "exit") -> Node:
        nonlocal last
        with graph.inserting_after(last):
            last = graph.create_node(op, target, args, name=name)  # type: ignore[arg-type]
        set_record(last, NodeRecord(role=role, segment=segment, cut=cut))  # type: ignore[arg-type]
        return last

    detached = [add("call_method", "detach", (by_name[name],), f"{name}_detached", "detach") for name in tensors]
    paths = [path for path in planned.borrowed if path not in planned.copied or planned.weights == "ema"]
    borrowed = [add("get_attr", path, (), borrowed_name(path)) for path in paths]
    inputs = [by_name[name] for name in planned.inputs]
    target = [context, *([by_name[planned.target]] if planned.target else [])] if context is not None else []
    args = (tuple(detached), tuple(inputs), tuple(borrowed), *target)
    result = add("call_module", f"dni.{exit_name(cut)}", args, exit_name(cut))
    for index, name in enumerate(tensors):
        add("call_function", operator.getitem, (result, index), f"{name}_gradient")
