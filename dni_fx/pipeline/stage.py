"""The stages of a pipeline: runs of segments of a rewritten net, each a module."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from dni_fx import ops
from dni_fx.errors import DniFxError, described
from dni_fx.partition import chain
from dni_fx.runtime import (
    Crossing,
    DecoupledModule,
    Exit,
    Part,
    keep_out_of_state_dict,
    keep_whole_in_part,
    part_graph,
    rewritten,
    segment_parts,
)

__all__ = ["SharedWeight", "Stage", "stages"]


@dataclass(frozen=True)
class SharedWeight:
    """A parameter that several stages have.

    Attributes:
        names: Its name in each of these stages, by the index of the stage.
        owners: The stages that use it in their own segments; the others, only in an exit.
    """

    names: dict[int, str]
    owners: tuple[int, ...]


@dataclass(frozen=True)
class Cut:
    """The cut at the upper end of a stage.

    Attributes:
        segment: The segment below it.
        crossings: The modules of its synthesizers, in the order of its tensors.
        exit: Its exit; None: synthesizers predict.
        places: The place of each of its tensors among the values that the stage passes on; None: it is not used.
        predictions: A graph that predicts the gradients again, from the values that the stage keeps; with an exit,
            an empty one.
    """

    segment: ops.Segment
    crossings: tuple[Crossing, ...]
    exit: Exit | None
    places: tuple[int | None, ...]
    predictions: fx.GraphModule

    @property
    def used(self) -> list[int]:
        """The places of the tensors that the stage above uses."""
        return [place for place in self.places if place is not None]

    @property
    def learns(self) -> bool:
        """Whether its synthesizers learn from the gradients of the stage above."""
        return self.exit is None and any(p.requires_grad for c in self.crossings for p in c.synthesizer.parameters())


class Stage(fx.GraphModule):
    """A run of segments of a net, with their synthesizers. Its parameters and buffers have their names in the net.

    In train mode a call runs forward, and the backward passes of its segments. It returns the values that the stage
    above takes, as a tuple, and the values from which the gradients at its upper end are predicted; the last stage
    returns what the net returns. `dni_send`, a function, is called with the values for the stage above as soon as they
    are there, before the exit or the synthesizers and the backward pass of the last segment.

    Attributes:
        index: Its number, from below.
        count: The number of stages.
        arguments: The names of its arguments.
        defaults: The values of those that have one.
        takes_context: Whether it takes `dni_context` as its last argument: the first stage alone.
        predicted: The places, among its arguments, of the tensors whose gradients the stage below predicts.
        net_name: What distinguishes the net from others: its fingerprint, and its cuts.
        cuts_name: The tensors that cross the cuts of the net, with their synthesizers.
        gives: The values that the stage above takes: names, and for activations dtypes and shapes.
        takes: Those of the stage below.
        shared: The parameters that other stages have, too.
        of_later: The names of the entries of its state_dict that a later stage has by the same name.
    """

    def __init__(self, net: DecoupledModule, part: Part, index: int, count: int) -> None:
        cut = part.cut if part.passed is not None else None
        kept = None if cut is None else _kept(net, cut)
        graph = part_graph(net, part, kept)
        if cut is not None:
            _send_early(graph)
        super().__init__(net, graph, "Stage")
        keep_out_of_state_dict(net, self)
        keep_whole_in_part(self, net)
        self.index, self.count = index, count
        self.arguments = tuple(str(node.target) for node in part.given)
        self.defaults = {str(node.target): node.args[0] for node in part.given if index == 0 and node.args}
        self.takes_context = index == 0 and net.dni_takes_context()
        self.takes: tuple[str, ...] = ()
        self.gives = tuple(node.name for node in part.passed or ())
        self.net_name = f"{net.dni.plan.fingerprint} {[cut.after for cut in net.dni.plan.cuts]}"
        synthesizers = net.dni.rewrite.synthesizers
        self.cuts_name = ", ".join(f"{name} by {synthesizers[name]}" for name in synthesizers)
        self.predicted: tuple[int, ...] = ()
        self.shared: tuple[SharedWeight, ...] = ()
        self.of_later: frozenset[str] = frozenset()
        self.train(net.training)
        # In a tuple: a module in an attribute would be a submodule, under a second name.
        self._cut: tuple[Cut | None] = (
            None if cut is None or kept is None else _cut(net, cut, kept, part.passed or ()),
        )
        if self.cut is not None:
            planned = net.dni.plan.cuts[self.cut.segment.index].predicted
            for place, tensor in zip(self.cut.places, planned, strict=True):
                if place is not None:
                    self.gives = (*self.gives, f"{tensor.node} {tensor.dtype} {list(tensor.shape[1:])}")

    @property
    def cut(self) -> Cut | None:
        """The cut at its upper end; None: it is the last stage."""
        return self._cut[0]

    @property
    def late_parameters(self) -> set[nn.Parameter]:
        """Those of the synthesizers at its upper end, to which gradients come late, unless `sync=True`."""
        cut = self.cut
        return (
            {p for c in cut.crossings for p in c.synthesizer.parameters()} if cut is not None and cut.learns else set()
        )

    @property
    def is_last(self) -> bool:
        return self.index == self.count - 1

    def learn(self, kept: Sequence[Any], targets: Sequence[Tensor | None]) -> None:
        """Give the synthesizers at the upper end their gradients, by predictions that are made again.

        Args:
            kept: The values that a call returned.
            targets: The gradient of each predicted tensor that the stage above uses.
        """
        cut = self.cut
        assert cut is not None
        predictions = cut.predictions(*kept)
        roots, gradients = [], []
        used = [index for index, place in enumerate(cut.places) if place is not None]
        for index, target in zip(used, targets, strict=True):
            if target is not None:
                layout = cut.segment.layout(index)
                roots.append(ops.boundary(kept[index].detach(), predictions[index], cut.segment, layout=layout))
                gradients.append(target)
        if roots:
            with ops.without_autocast(roots[0].device.type):
                torch.autograd.backward(roots, gradients)


def stages(net: nn.Module, count: int | None = None) -> list[Stage]:
    """The stages of a pipeline for `ScheduleDecoupled`, from below: runs of the segments of a rewritten net.

    A process keeps the one that it runs. Together their `state_dict`s have the entries of that of the net; where
    several have an entry, as copies in exits, that of the last one counts.

    Args:
        net: Returned by `dni_fx.transform` with unlock="backward".
        count: The number of stages, at most that of the segments; None: a segment each.

    Raises:
        DniFxError: As `dni_fx.segments` does, or if the net cannot have so many stages.
    """
    net = rewritten(net)
    plan = net.dni.plan
    if net.dni.rewrite.unlock != "backward" or net.dni.rewrite.training.warmup:
        raise DniFxError(
            'stages are for nets with unlock="backward" and without a warm-up, which has no synthetic gradients'
        )
    if net.dni.scaler is not None or net.dni.accumulate not in (None, 1):
        raise DniFxError("stages take no GradScaler, and no accumulate=: the schedule accumulates")
    segments = len(plan.segments)
    count = segments if count is None else count
    if not isinstance(count, int) or not 1 < count <= segments:
        raise DniFxError(f"count={described(count)}: a net of {segments} segments has 2 to {segments} stages")
    parts = segment_parts(net, _sizes([segment.load or segment.flops for segment in plan.segments], count))
    found = [Stage(net, part, index, count) for index, part in enumerate(parts)]
    net.dni.scale_with(accumulate=1)  # the schedule adds the gradients of microbatches up, and divides them
    for below, stage in zip(found, found[1:], strict=False):
        assert below.cut is not None
        stage.predicted, stage.takes = tuple(below.cut.used), below.gives
    later: set[str] = set()
    for stage in reversed(found):
        names = stage.state_dict().keys()
        stage.of_later = frozenset(names & later)
        later |= names
    for weight in _shared(found):
        for index in weight.names:
            found[index].shared += (weight,)
    return found


def _sizes(loads: Sequence[float], count: int) -> list[int]:
    """The numbers of segments in each stage, for the lightest heaviest stage."""
    sums = np.concatenate([[0.0], np.cumsum(loads)])
    cuts = chain.lightest(lambda i: sums[i + 1 :] - sums[i], len(loads), count - 1)[count - 1].cuts
    return [end - begin for begin, end in zip([0, *cuts], [*cuts, len(loads)], strict=True)]


def _send_early(graph: fx.Graph) -> None:
    """Let a stage call `dni_send` with its tensors at the upper end before it predicts their gradients."""
    output: Any = graph.output_node().args[0]
    cut = next(node for node in reversed(graph.nodes) if node.target in (ops.decouple, ops.decouple_unit))
    values: Any = cut.args[1] if cut.target is ops.decouple else (cut.args[2],)
    before = {node: values[node.args[1]] for node in cut.users if node.target is operator.getitem}
    sent = tuple(before.get(node, node) for node in output[0])
    *_, last = graph.find_nodes(op="placeholder")
    with graph.inserting_after(last):
        send = graph.placeholder("dni_send", default_value=None)
    number = {node: k for k, node in enumerate(graph.nodes)}
    with graph.inserting_after(max([send, *sent], key=number.__getitem__)):
        graph.call_function(_send, (send, sent))


def _send(send: Callable[[Sequence[Any]], None] | None, values: Sequence[Any]) -> None:
    if send is not None:
        send(values)


def _segment_below(net: DecoupledModule, cut: fx.Node) -> ops.Segment:
    arguments: Any = cut.args
    segment: Any = net.get_submodule(arguments[4 if cut.target is ops.decouple_unit else 3].target)
    found: ops.Segment = segment
    return found


def _kept(net: DecoupledModule, cut: fx.Node) -> list[fx.Node]:
    """The nodes from whose values synthesizers predict at a cut: its tensors, detached, and others; none for exits."""
    if _segment_below(net, cut).index in net.dni.exits:
        return []
    arguments: Any = cut.args
    detached, predictions = arguments[1], arguments[2]
    others = [node for prediction in predictions for node in prediction.all_input_nodes]
    return list(dict.fromkeys([*detached, *others]))


def _cut(net: DecoupledModule, cut: fx.Node, kept: Sequence[fx.Node], passed: Sequence[fx.Node]) -> Cut:
    arguments: Any = cut.args
    segment = _segment_below(net, cut)
    predictions = (arguments[3],) if cut.target is ops.decouple_unit else arguments[2]
    results = {node.args[1]: node for node in cut.users}
    places = tuple(passed.index(results[i]) if results.get(i) in passed else None for i in range(len(predictions)))
    crossings: Any = tuple(net.get_submodule(node.target) for node in predictions)
    graph = fx.Graph()
    copies = {node: graph.placeholder(f"kept{index}") for index, node in enumerate(kept)}
    if kept:
        graph.output(tuple(graph.node_copy(node, lambda n: copies[n]) for node in predictions))
    exit = net.dni.exits.get(segment.index)
    return Cut(segment, crossings, exit, places, fx.GraphModule(net, graph, "Predictions"))


def _shared(found: Sequence[Stage]) -> list[SharedWeight]:
    names: dict[nn.Parameter, dict[int, str]] = {}
    owners: dict[nn.Parameter, list[int]] = {}
    for stage in found:
        own = _own_parameters(stage)
        for name, parameter in stage.named_parameters():
            names.setdefault(parameter, {})[stage.index] = name
            if parameter in own:
                owners.setdefault(parameter, []).append(stage.index)
    return [SharedWeight(where, tuple(owners.get(p, ()))) for p, where in names.items() if len(where) > 1]


def _own_parameters(stage: Stage) -> set[nn.Parameter]:
    """The parameters that a stage uses, but for those that it uses in exits alone."""
    found: set[nn.Parameter] = set()
    for node in stage.graph.nodes:
        in_exit = node.op == "get_attr" and all(_runs_exit(stage, user) for user in node.users)
        if node.op not in ("get_attr", "call_module") or in_exit:
            continue
        module, _, name = str(node.target).rpartition(".")
        value = getattr(stage.get_submodule(module), name)
        found |= set(value.parameters()) if isinstance(value, nn.Module) else {value}
    return found


def _runs_exit(stage: Stage, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(stage.get_submodule(str(node.target)), Exit)
