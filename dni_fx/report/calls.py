"""The record of a net by the front end `modules`, as lines for people: calls of submodules in order, and the cuts.

The net has no graph that runs. Its record is a chain of calls, in which each call takes the outputs of the call before:
printed as code, this chain would be a program that the model does not run.
"""

import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from dni_fx.capture import line_of_node
from dni_fx.plans import Plan, crossing_name, time_name
from dni_fx.runtime import DecoupledModule

__all__ = ["RecordLine", "calls_of", "outputs_of", "record_lines"]


def outputs_of(call: fx.Node) -> list[fx.Node]:
    """The nodes of the outputs of a call, if the call has several."""
    return [user for user in call.users if user.target is operator.getitem]


@dataclass(frozen=True)
class RecordLine:
    """One call, or what happens at a cut; and its place, as in a diff."""

    text: str
    place: str
    added: bool  # the rewrite added this line
    source: str = ""  # the place of the line of the person's code


def calls_of(graph: fx.Graph) -> Iterator[fx.Node]:
    """The calls of the model's own submodules, in the order in which they returned."""
    return (node for node in graph.nodes if node.op == "call_module" and not str(node.target).startswith("dni."))


def record_lines(net: DecoupledModule) -> Iterator[RecordLine]:
    """The calls of one training step, each cut after the call that ends the segment below; a capture has no cuts."""
    plan = net.dni.plan if hasattr(net, "dni") else None
    cut_after = {} if plan is None else {cut.after: index for index, cut in enumerate(plan.cuts)}
    segment = 0
    counts: Counter[str] = Counter()
    for node in calls_of(net.graph):
        module = str(node.target)
        counts[module] += 1
        again = f", call {counts[module]} of the step" if counts[module] > 1 else ""
        cls = type(net.get_submodule(module)).__name__
        place = "" if plan is None else f"segment {segment}"
        yield RecordLine(f"call {module} ({cls}{again})", place, False, line_of_node(node)[0])
        for name in (node.name, *(output.name for output in outputs_of(node))):
            if plan is not None and name in cut_after:
                yield from _cut_lines(plan, cut_after[name], module)
                segment = cut_after[name] + 1
    for index, state in enumerate(() if plan is None else plan.states):
        inputs = ", ".join(dict.fromkeys(tensor.input for tensor in state.tensors))
        text = f"cut the state {inputs} from window to window: predict its gradient by net.dni.{time_name(index)}"
        yield RecordLine(text, "cut in time", True)


def _cut_lines(plan: Plan, index: int, module: str) -> Iterator[RecordLine]:
    """What the hook does at a cut."""
    for tensor in plan.cuts[index].tensors:
        shape = f"{'x'.join(map(str, tensor.shape))} {tensor.dtype}"
        name = crossing_name(index, tensor.node)
        text = f"cut {tensor.node} off, an output of {module} ({shape}): predict its gradient by net.dni.{name}"
        yield RecordLine(text, f"cut {index}", True)
    unlock = "" if plan.rewrite is None else plan.rewrite.unlock
    goes = "run the backward pass of the segment below" if unlock == "backward" else "send the prediction upstream"
    yield RecordLine(goes, f"cut {index}", True)
