"""The segments of a rewritten net as modules of their own, which run one after another."""

import inspect
import operator
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch
from torch import fx, nn

from dni_fx import ops
from dni_fx.errors import DniFxError
from dni_fx.model import preserved
from dni_fx.runtime.generated import AnyNames
from dni_fx.runtime.module import DecoupledModule, rewritten

__all__ = ["segments"]

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
    net = rewritten(net)
    _check(net)
    parts = _parts(net.graph)
    numbers = {node: number for number, part in enumerate(parts) for node in part}
    given = [node for node in parts[0] if node.op == "placeholder"]
    found = []
    for number, part in enumerate(parts):
        own = [node for node in part if node.op != "output"]
        there = dict.fromkeys([*given, *(node for node in own if node.op != "get_attr")])
        passed = [node for node in there if any(numbers[user] > number for user in node.users)]
        found.append(_module(net, given, own, passed if number < len(parts) - 1 else None))
        given = passed
    return found


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


def _module(
    net: DecoupledModule, given: Sequence[fx.Node], own: Sequence[fx.Node], passed: Sequence[fx.Node] | None
) -> fx.GraphModule:
    """A module of some nodes of a net.

    Args:
        given: Its arguments.
        passed: What it returns; None: what the net returns.
    """
    graph = fx.Graph()
    graph.set_codegen(AnyNames())
    copies: dict[fx.Node, fx.Node] = {}
    for node in given:
        default = node.args[0] if node in own and node.args else inspect.Parameter.empty
        copies[node] = graph.placeholder(node.name, default_value=default)

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:  # a parameter or module, which a part below reads, too
            copies[node] = graph.node_copy(node, copied)
        return copies[node]

    for node in own:
        copied(node)
    if passed is not None:
        results: Any = [copies[node] for node in passed]
        graph.output(results[0] if len(results) == 1 else tuple(results))
    else:
        result: Any = fx.map_arg(net.graph.output_node().args[0], copied)
        calling = getattr(net, "dni_calling", None)
        graph.output(result if calling is None else graph.call_function(calling.unflatten, (result,)))
    made = _Stage(net, graph, "Segment")
    if not net.dni_runs_graph_in_eval:
        made.register_forward_pre_hook(_in_train_mode)
    return made


class _Stage(fx.GraphModule):
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
