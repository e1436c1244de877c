"""A model of the memory of a training step: the bytes that are alive while a segment runs forward and backward.

The model counts the memory that the step allocates: activations that autograd keeps, values that are still used,
gradients of activations and of parameters, predictions. `resident` counts the memory that is always there.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import networkx as nx
import numpy as np
from torch import nn

from dni_fx.model import Inputs
from dni_fx.partition import LoadsFrom, Numbers, flow_node, largest_parameter

__all__ = ["Memory", "Peak", "resident"]


def resident(module: nn.Module, inputs: Inputs, optimizer_states: int) -> int:
    """Bytes that are always there: parameters, `optimizer_states` for each trainable one, buffers, the batch."""
    parameters = [t.nbytes * (1 + optimizer_states * t.requires_grad) for t in module.parameters()]
    return sum(parameters) + sum(t.nbytes for t in (*module.buffers(), *inputs.tensors()))


class Peak(NamedTuple):
    """The most bytes that are alive at once while one segment runs."""

    bytes: float
    node: str  # that runs at the peak
    backward: bool  # whether the node runs backward


@dataclass(frozen=True)
class _Storage:
    """One piece of memory that a node allocates; nodes are numbers."""

    size: int
    made: int
    saver: int | None  # the first node for which autograd keeps the storage
    last: int  # the last node that uses the storage
    carries: bool  # a value in the storage carries gradient


class Memory:
    """Bytes at every node of a graph, numbered from 1; number 0 is the beginning.

    Args:
        flow: The result of `graph.dataflow`.
        pieces: The pieces whose activations the backward pass computes again, in order: the numbers of the first and
            the last node of each.
    """

    def __init__(self, flow: "nx.DiGraph[str]", pieces: Sequence[tuple[int, int]] = ()) -> None:
        self.names = list(flow)
        count = len(self.names)
        storages = _storages(flow)
        dropped = list(storages.values())
        if pieces:
            storages = _with_pieces(flow, storages, pieces)
        every = storages.values()
        users = _users(flow, storages)
        shared_until = _shared_until(flow, storages, users)

        # Each array has an entry for each node number. While a node runs, forward or backward, autograd keeps:
        kept = _sums(count, ((s.size, s.saver, count + 1) for s in every if s.saver))
        # Not kept by autograd (yet), and used: by this node or a later one, and by a later one.
        waiting = _sums(count, ((s.size, s.made, _until_kept(s.saver, s.last + 1)) for s in every))
        crossing = _sums(count, ((s.size, s.made, _until_kept(s.saver, s.last)) for s in every))
        # Kept by autograd, and used by a later node.
        kept_and_used = [(s.size, s.saver, s.last) for s in every if s.saver and s.saver < s.last]
        used_later = _sums(count, kept_and_used)
        # Gradients of activations while the node runs backward: already there, and allocated by the node.
        gradients = _sums(count, _gradients(storages, users, shared_until))
        # Activations of a piece that are there again, from its last node backward; and before that, the most bytes that
        # are there while the piece runs a second time.
        again, running = _second_runs(count, dropped, pieces)
        allocated = _sums(count, ((size, i, i + 1) for i, size in enumerate(_input_gradients(flow), 1)))
        # Gradients of all parameters that a node up to this one uses.
        parameters = np.cumsum([0.0, *(flow_node(flow, name).gradient for name in flow)])

        self.parameters = parameters
        self.storages, self.kept = storages, kept
        self.forward = kept + waiting
        # In a backward pass, the gradients of parameters are there from this node on. `at_upper_cut` adds the gradients
        # of all parameters up to the cut, so the gradients of the nodes before this one are subtracted here.
        at_node = np.maximum(again + allocated, running)
        self.backward = kept + gradients + at_node - np.concatenate([[0.0], parameters[:-1]])
        # After the nodes above this one have run backward, and before this node does.
        self.after_backward = kept - parameters
        # Added to the segment above a cut after this node: the segments below have run backward, so the gradients of
        # their parameters are there, and autograd has freed their storages, except storages that are used above.
        self.at_lower_cut = parameters + used_later - kept
        # Added to the backward pass of the segment below a cut after this node.
        self.at_upper_cut = parameters + crossing
        # Storages that autograd keeps from this node on. If a cut follows, they stay when the node has run backward.
        self.saved_here = _sums(count, ((size, saver, saver + 1) for size, saver, _ in kept_and_used))
        # Adam makes two temporaries of one parameter at a time, while the gradients of all are there.
        self.optimizer = float(parameters[-1]) + 2 * largest_parameter(flow)

    def segment_peaks(
        self, cuts: Sequence[int], below: Numbers, above: Numbers, training: Numbers, exits: Numbers
    ) -> LoadsFrom:
        """The peak of every segment between two cuts, or the peak of the optimizer's step if that is higher.

        Five kinds of moments are compared: a node of the segment runs forward; the exit at the upper cut runs; the last
        node runs backward; an earlier node runs backward; the synthesizers at the lower cut are trained. `peak` does
        the same for one segment.

        Args:
            cuts: The number of the node before each cut, from 0 to the number of the last node.
            below: Bytes that the predictions at each cut take, until their targets are there: beside the segment above.
            above: The same, and the bytes that units above keep: beside the segment below.
            training: Bytes that the training of the synthesizers at each cut takes for a moment.
            exits: Bytes that the exit at each cut takes for a moment.
        """
        places = np.asarray(cuts)

        def peaks_from(i: int) -> Numbers:
            start, ends = places[i], places[i + 1 :]  # each end is one segment: one entry in each array below
            last = ends - start - 1  # index of the segment's last node among the nodes after `start`
            at_lower_cut = self.at_lower_cut[start] + below[i]
            at_upper_cut = self.at_upper_cut[ends] + above[i + 1 :]

            # 1. A node runs forward: entry k of `accumulate` is the maximum over the nodes up to k.
            forward = np.maximum.accumulate(self.forward[start + 1 :])[last]
            # 2. The exit at the upper cut runs.
            forward = np.maximum(forward, self.forward[ends] + exits[i + 1 :])
            # 3. The last node runs backward.
            last_backward = self.backward[ends]
            # 4. An earlier node runs backward: with -inf in front, the maximum is over the nodes before k.
            earlier_backward = np.maximum.accumulate(np.append(-math.inf, self.backward[start + 1 :]))[last]
            # 5. All nodes have run backward, and the synthesizers at the lower cut are trained.
            trained = self.after_backward[start] + training[i]

            after_last = np.maximum(earlier_backward, trained) + self.saved_here[ends]
            backward = at_upper_cut + np.maximum(last_backward, after_last)
            peaks: Numbers = np.maximum(at_lower_cut + np.maximum(forward, backward), self.optimizer)
            return peaks

        return peaks_from

    def peak(self, start: int, end: int, below: float, above: float, training: float, at_exit: float = 0.0) -> Peak:
        """The peak of the segment that begins after node number `start` and ends with number `end`, and its place.

        Args:
            below: Bytes that the predictions at the lower cut take.
            above: Bytes that the predictions at the upper cut take.
            training: Bytes that the training of the synthesizers at the lower cut takes for a moment.
            at_exit: Bytes that the exit at the upper cut takes for a moment.
        """
        forward, backward, trained = self.moments(start, end, below, above, training, at_exit)
        if trained > max(backward.max(), forward.max()):
            return Peak(trained, self.names[start], True)
        is_backward = bool(backward.max() >= forward.max())
        values = backward if is_backward else forward
        return Peak(float(values.max()), self.names[start + int(values.argmax())], is_backward)

    def moments(
        self, start: int, end: int, below: float, above: float, training: float, at_exit: float
    ) -> tuple[Numbers, Numbers, float]:
        """The bytes while each node of a segment runs forward, and backward, and while its synthesizers are trained.

        The arguments are those of `peak`.
        """
        nodes = np.arange(start + 1, end + 1)
        at_lower_cut = self.at_lower_cut[start] + below
        at_both_cuts = at_lower_cut + self.at_upper_cut[end] + above

        forward = at_lower_cut + self.forward[nodes] + at_exit * (nodes == end)
        backward = at_both_cuts + self.backward[nodes] + self.saved_here[end] * (nodes < end)
        trained = at_both_cuts + self.after_backward[start] + training + self.saved_here[end]
        return forward, backward, float(trained)


def _storages(flow: "nx.DiGraph[str]") -> dict[int, _Storage]:
    size: dict[int, int] = {}
    made: dict[int, int] = {}
    saver: dict[int, int] = {}
    last: dict[int, int] = {}
    carries: set[int] = set()
    order = {name: i for i, name in enumerate(flow, 1)}
    for name, i in order.items():
        node = flow_node(flow, name)
        for key, bytes_ in {**node.owns, **node.saves}.items():
            size.setdefault(key, bytes_)
            made.setdefault(key, i)
        saver |= dict.fromkeys(node.saves, i)
        for key in node.storages:
            last[key] = max([last.get(key, i), *(order[user] for user in flow.successors(name))])
            if node.carries_gradient:
                carries.add(key)
    for key, i in last.items():
        if i == len(order) and key in carries and made.get(key, i) < i:
            saver.setdefault(key, i)  # the loss keeps about as many bytes as its inputs have
    return {k: _Storage(size[k], made[k], saver.get(k), last.get(k, made[k]), k in carries) for k in size}


def _with_pieces(
    flow: "nx.DiGraph[str]", storages: Mapping[int, _Storage], pieces: Sequence[tuple[int, int]]
) -> dict[int, _Storage]:
    """The storages, where autograd keeps nothing for the nodes of pieces, but the values that each piece takes."""
    first = {node: begin for begin, end in pieces for node in range(begin, end + 1)}
    order = {name: i for i, name in enumerate(flow, 1)}
    uses: dict[int, set[int]] = {key: set() for key in storages}
    for name in flow:
        for key in flow_node(flow, name).storages & uses.keys():
            uses[key].update(order[user] for user in flow.successors(name))
    found: dict[int, _Storage] = {}
    for key, s in storages.items():
        taken = [first[i] for i in uses[key] if i in first and s.made < first[i]]
        if s.saver is not None and s.saver not in first:
            taken.append(s.saver)
        elif s.saver is not None:  # a node behind the piece may save the storage, too
            taken += [i for i in uses[key] if i > s.saver and i not in first]
        found[key] = replace(s, saver=min(taken, default=None))
    return found


def _second_runs(
    count: int, storages: Sequence[_Storage], pieces: Sequence[tuple[int, int]]
) -> tuple[Numbers, Numbers]:
    """For each node, the bytes of the second run of its piece that are left; for the last node, the most bytes."""
    again, running = np.zeros(count + 1), np.zeros(count + 1)
    for first, last in pieces:
        own = [s for s in storages if first <= s.made <= last]
        kept = _sums(count, ((s.size, s.saver, last + 1) for s in own if s.saver and s.saver <= last))
        used = ((s.size, s.made, _until_kept(s.saver, min(s.last, last) + 1)) for s in own)
        again += kept
        running[last] = (kept + _sums(count, used))[first : last + 1].max()
    return again, running


def _users(flow: "nx.DiGraph[str]", storages: Mapping[int, _Storage]) -> dict[int, list[int]]:
    """For each storage, the nodes that read it and send a gradient back, except views; the last node first."""
    order = {name: i for i, name in enumerate(flow, 1)}
    users: dict[int, set[int]] = {key: set() for key in storages}
    for name in flow:
        node = flow_node(flow, name)
        for key in node.storages & users.keys() if node.carries_gradient else ():
            users[key] |= {order[user] for user in flow.successors(name) if key not in flow_node(flow, user).storages}
    return {key: sorted(numbers, reverse=True) for key, numbers in users.items()}


def _shared_until(
    flow: "nx.DiGraph[str]", storages: Mapping[int, _Storage], users: Mapping[int, Sequence[int]]
) -> dict[int, int]:
    """For each sum, the node down to which its terms share its gradient in the backward pass."""
    sums = {i: flow_node(flow, name).owns for i, name in enumerate(flow, 1) if flow_node(flow, name).is_sum}
    until: dict[int, int] = {}
    for key, numbers in users.items():
        if numbers and sums.get(numbers[0]):
            end = max([storages[key].made, *numbers[1:2]])
            until[numbers[0]] = min(until.get(numbers[0], end), end)
    return until


def _gradients(
    storages: Mapping[int, _Storage], users: Mapping[int, Sequence[int]], shared_until: Mapping[int, int]
) -> Iterator[tuple[float, int, int]]:
    """When the gradients of storages are alive in the backward pass: (bytes, first node, one past the last node).

    The terms of a sum share its gradient until the backward pass reaches their next user.
    """
    for key, s in storages.items():
        if s.carries:
            last, *others = users[key] or [s.made + 1]
            end = max([s.made, *others[:1]]) if last in shared_until else last
            yield s.size, s.made, end
    made = {s.made: s.size for s in storages.values()}
    yield from ((made[i], until, i) for i, until in shared_until.items())


def _input_gradients(flow: "nx.DiGraph[str]") -> list[float]:
    """For each node, the bytes of the gradients that it allocates for its inputs; a view allocates none."""
    result = []
    output = list(flow)[-1]
    for name in flow:
        node = flow_node(flow, name)
        sources = [flow_node(flow, source) for source in flow.predecessors(name)]
        read = sum(source.bytes for source in sources if source.carries_gradient)
        allocates = node.owns or node.mutates or name == output  # the loss allocates the gradients of the outputs
        result.append(float(read) if allocates and not node.is_sum else 0.0)
    return result


def _until_kept(saver: int | None, end: int) -> int:
    """The end of the time in which a storage is used and not kept by autograd."""
    return end if saver is None else min(saver, end)


def _sums(count: int, spans: Iterable[tuple[float, int, int]]) -> Numbers:
    """For each node number 0..count, the sum of the spans (amount, first, one past the last) that hold it."""
    steps = np.zeros(count + 2)
    for amount, first, end in spans:
        if first < end:
            steps[first] += amount
            steps[min(end, count + 1)] -= amount
    return np.cumsum(steps[:-1])
