"""Put the two ends of the units that run once, for an exit and for the segment above, at every cut that has them."""

import operator
from collections.abc import Sequence

from torch.fx import Graph, GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from dni_fx import ops
from dni_fx.graph import NodeRecord, record_of, set_record
from dni_fx.passes.boundary import borrowed_name, end_of_segment, next_name, rewire, synthesizers_by_cut, value_at
from dni_fx.plans import Cut, UnitPlan, exit_name

__all__ = ["DecoupleUnits"]


class DecoupleUnits(PassBase):
    """Needs: `AddSynthesizers`, modules `dni.segment<k>` and `dni.<exit_name>` for every cut with units.

    Leaves: an `ops.begin_unit` on the tensors that cross the cut, and an `ops.decouple_unit` on the value of the units
    (role "boundary"). The units use the results of the first, and the nodes behind them the result of the second.

    Args:
        cuts: The cuts of the plan.
    """

    def __init__(self, cuts: Sequence[Cut]) -> None:
        super().__init__()
        self.cuts = cuts

    def call(self, graph_module: GraphModule) -> PassResult:
        graph = graph_module.graph
        predictions = synthesizers_by_cut(graph)
        units = {index: cut.exit.unit for index, cut in enumerate(self.cuts) if cut.exit is not None}
        for index, unit in units.items():
            if unit is not None:
                names = [tensor.node for tensor in self.cuts[index].tensors]
                (prediction,) = predictions[index]
                _decouple(graph, index, unit, names, prediction)
        return PassResult(graph_module, True)


def _decouple(graph: Graph, cut: int, unit: UnitPlan, names: Sequence[str], prediction: Node) -> None:
    by_name = {node.name: node for node in graph.nodes}
    last = end_of_segment(graph, cut)
    outputs = tuple(value_at(by_name[name], last) for name in names)

    def add(op: str, target: object, args: tuple[object, ...], name: str | None = None) -> Node:
        nonlocal last
        segment = record_of(last).segment
        with graph.inserting_after(last):
            last = graph.create_node(op, target, args, name=name)  # type: ignore[arg-type]
        set_record(last, NodeRecord(role="boundary", segment=segment, cut=cut))
        return last

    # A saved net is traced again: a module becomes a node right before the call that takes it, in order.
    begun = add("call_function", ops.begin_unit, (outputs, add("get_attr", f"dni.{exit_name(cut)}", ())))
    leaves = tuple(
        add("call_function", operator.getitem, (begun, index), next_name(output))
        for index, output in enumerate(outputs)
    )
    for output, leaf in zip(outputs, leaves, strict=True):
        rewire(output, leaf, cut)
    last = prediction
    segment, exit = add("get_attr", f"dni.segment{cut}", ()), add("get_attr", f"dni.{exit_name(cut)}", ())
    borrowed = tuple(add("get_attr", path, (), borrowed_name(path)) for path in unit.borrowed)
    value = by_name[unit.tensor.node]
    decoupled = add("call_function", ops.decouple_unit, (outputs, leaves, value, prediction, segment, exit, borrowed))
    rewire(value, add("call_function", operator.getitem, (decoupled, 0), next_name(value)), cut)
