"""The segments of a rewritten net as modules of their own, which run one after another."""

import inspect
import operator
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import fx, nn

from dni_fx import ops
from dni_fx.errors import DniFxError
from dni_fx.model import preserved
from dni_fx.runtime.generated import AnyNames
from dni_fx.runtime.module import DecoupledModule, rewritten

__all__ = ["Part", "keep_out_of_state_dict", "part_graph", "segment_parts", "segments"]

_CUTS = (ops.decouple, ops.decouple_unit, ops.inject)
_CALLERS = 12  # frames from the call of a stage's module to the method of the stage, at most


def segments(net: nn.Module) -> list[fx.GraphModule]:
    """The segments of a rewritten net, from below: each with the synthesizers of the cut above it.

    Run one after another they compute what the net computes, forward and backward, on the same parameters, by the same
    names. They are stages of `torch.distributed.pipelining`. Weights that several segments use, as exits use those of
    later layers, are copies where each segment has a process of its own: add up their gradients over the processes.

    Args:
        net: Returned by `dni_fx.transform`. Its own checks of the training loop do not run in its segments.

    Returns:
        A module for each segment. The first takes the arguments of a call of the net by position (with the front end
        export, their tensors), and then `dni_context`, if the net takes it; arguments that the model was captured
        without are None. Each other takes what the one below returns: a tensor, or several. The last returns what the
        net returns. Segments of the front end export run in train mode alone.

    Raises:
        DniFxError: If the net has no cuts in depth or no graph, or more than forward and backward belongs to its step.
    """
    return [_module(net, part) for part in segment_parts(net)]


@dataclass(frozen=True)
class Part:
    """A run of nodes of a net's graph.

    Attributes:
        given: The nodes before it whose values it takes, or passes on.
        own: Its nodes.
        passed: The nodes whose values it returns; None: it returns what the net returns.
    """

    given: list[fx.Node]
    own: list[fx.Node]
    passed: list[fx.Node] | None

    @property
    def cut(self) -> fx.Node | None:
        """The last cut in it."""
        return next((node for node in reversed(self.own) if node.target in _CUTS), None)


def segment_parts(net: nn.Module, sizes: Sequence[int] = ()) -> list[Part]:
    """The parts of a rewritten net's graph, from below: a segment each, or runs of `sizes` segments.

    Raises:
        DniFxError: As `segments` does.
    """
    net = rewritten(net)
    _check(net)
    parts = _joined(_parts(net.graph), sizes)
    numbers = {node: number for number, part in enumerate(parts) for node in part}
    given = [node for node in parts[0] if node.op == "placeholder"]
    found = []
    for number, part in enumerate(parts):
        own = [node for node in part if node.op != "output"]
        there = dict.fromkeys([*given, *(node for node in own if node.op != "get_attr")])
        passed = [node for node in there if any(numbers[user] > number for user in node.users)]
        found.append(Part(given, own, passed if number < len(parts) - 1 else None))
        given = passed
    return found


def _joined(parts: Sequence[list[fx.Node]], sizes: Sequence[int]) -> list[list[fx.Node]]:
    """Runs of parts, of these sizes."""
    rest = iter(parts)
    return [[node for _ in range(size) for node in next(rest)] for size in sizes] if sizes else list(parts)


def _check(net: DecoupledModule) -> None:
    """Raise a DniFxError if the segments cannot run apart."""
    plan = net.dni.plan
    if not net.dni_runs_graph:
        raise DniFxError('segments need a graph, by the front end fx or export: the front end "modules" has none')
    if not plan.cuts or plan.states:
        raise DniFxError("segments are for nets with cuts in depth, and none in time")
    if net.dni.optimizer is not None:
        raise DniFxError('segments that run apart do not step by themselves: transform with step="loop"')
    if any(segment.recomputed for segment in plan.segments):
        raise DniFxError('segments that run apart keep their activations: transform with inside="keep"')
    if getattr(net.dni_captured, "autocast", False):
        raise DniFxError("the model's own torch.autocast may reach over a cut: enter autocast around the net")


def _parts(graph: fx.Graph) -> list[list[fx.Node]]:
    """The nodes up to each cut, with the elements of its result, and those above the last."""
    parts: list[list[fx.Node]] = [[]]
    cut = None
    for node in graph.nodes:
        if cut is not None and not (node.target is operator.getitem and node.args[0] is cut):
            parts.append([])
            cut = None
        parts[-1].append(node)
        if node.target in _CUTS:
            cut = node
    return parts


def part_graph(net: DecoupledModule, part: Part, kept: Sequence[fx.Node] | None = None) -> fx.Graph:
    """A graph of the part.

    Args:
        kept: Nodes whose values it returns, too, unless it is the last part: then it returns a pair of tuples, of the
            passed values and of these.
    """
    graph = fx.Graph()
    graph.set_codegen(AnyNames())
    copies: dict[fx.Node, fx.Node] = {}
    for node in part.given:
        default = node.args[0] if node in part.own and node.args else inspect.Parameter.empty
        copies[node] = graph.placeholder(node.name, default_value=default)

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:  # a parameter or module, which a part below reads, too
            copies[node] = graph.node_copy(node, copied)
        return copies[node]

    for node in part.own:
        if node.op != "get_attr":  # which a later part may use alone
            copied(node)
    if part.passed is not None:
        results: Any = tuple(copies[node] for node in part.passed)
        if kept is not None:
            graph.output((results, tuple(copies[node] for node in kept)))
        else:
            graph.output(results[0] if len(results) == 1 else results)
    else:
        result: Any = fx.map_arg(net.graph.output_node().args[0], copied)
        calling = getattr(net, "dni_calling", None)
        graph.output(result if calling is None else graph.call_function(calling.unflatten, (result,)))
    return graph


def keep_out_of_state_dict(net: nn.Module, made: nn.Module) -> None:
    """Leave out of a module's state_dict the buffers that the net's leaves out: torch.fx registers them anew."""
    there = net.state_dict().keys()
    for prefix, module in made.named_modules():
        missing = {name for name in module._buffers if (f"{prefix}.{name}" if prefix else name) not in there}
        module._non_persistent_buffers_set |= missing


def _module(net: nn.Module, part: Part) -> fx.GraphModule:
    net = rewritten(net)
    made = SegmentModule(net, part_graph(net, part), "Segment")
    keep_out_of_state_dict(net, made)
    if not net.dni_runs_graph_in_eval:
        made.register_forward_pre_hook(_in_train_mode)
    return made


class SegmentModule(fx.GraphModule):
    """A segment, which trains nothing while a PipelineStage looks for shapes."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not _finds_shapes():
            return super().__call__(*args, **kwargs)
        with preserved(self):  # else a local backward pass leaves gradients of values that are no data
            return super().__call__(*args, **kwargs)


def _finds_shapes() -> bool:
    """Whether a PipelineStage calls, which runs its module once, before the first step, to see shapes."""
    if torch.compiler.is_compiling() or "torch.distributed.pipelining" not in sys.modules:
        return False
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_CALLERS):
        if frame is None:
            return False
        in_pipelining = frame.f_globals.get("__name__", "").startswith("torch.distributed.pipelining")
        if in_pipelining and frame.f_code.co_name in ("_forward_metadata_inference", "_shape_inference"):
            return True
        frame = frame.f_back
    return False


def _in_train_mode(module: nn.Module, _args: Any) -> None:
    if not module.training:
        raise DniFxError(
            "segments of a net that torch.export has captured run in train mode alone: call the net itself"
        )
