"""A model of the memory that a training step takes: what is alive while a segment runs forward and backward.

Counted is what the step itself makes: activations that autograd keeps, values that are still wanted, gradients of both
activations and parameters, predictions. Parameters, optimizer state and the batch are there all along.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import networkx as nx
import numpy as np
from torch import nn

from dni_fx.model import Inputs
from dni_fx.partition import Loads, Numbers, flow_node

__all__ = ["Memory", "Peak", "resident"]


def resident(module: nn.Module, inputs: Inputs, optimizer_states: int) -> int:
    """Bytes there all along: parameters, `optimizer_states` times as much for trainable ones, buffers, the batch."""
    parameters = [t.nbytes * (1 + optimizer_states * t.requires_grad) for t in module.parameters()]
    return sum(parameters) + sum(t.nbytes for t in (*module.buffers(), *inputs.tensors()))


class Peak(NamedTuple):
    """The most that is alive at once while one segment runs."""

    bytes: float
    node: str  # where it is reached
    backward: bool  # on the way back


@dataclass(frozen=True)
class _Storage:
    """One piece of memory that a node makes: places in the order of the graph."""

    size: int
    made: int
    saver: int | None  # the first node that autograd keeps it for
    last: int  # the last node that uses it
    carries: bool  # a value in it carries gradient


class Memory:
    """Bytes at every node of a graph, numbered from 1; number 0 is the beginning.

    Args:
        flow: As `graph.dataflow` gives it.
    """

    def __init__(self, flow: "nx.DiGraph[str]") -> None:
        self.names = list(flow)
        storages = _storages(flow)
        every = storages.values()
        count = len(self.names)
        kept = _sums(count, ((s.size, s.saver, count + 1) for s in every if s.saver))
        waiting = _sums(count, ((s.size, s.made, _unless(s.saver, s.last + 1)) for s in every))
        users = _users(flow, storages)
        handed_on = _handed_on(flow, storages, users)
        gradients = _sums(count, _gradients(storages, users, handed_on))
        made = _sums(count, ((size, i, i + 1) for i, size in enumerate(_input_gradients(flow), 1)))
        self.parameters = np.cumsum([0.0, *(flow_node(flow, name).gradient for name in flow)])
        self.kept = kept
        # What crosses a cut is there while the segment below goes backward; `kept` has it as long as autograd does.
        self.crossing = _sums(count, ((s.size, s.made, _unless(s.saver, s.last)) for s in every))
        self.let_go = _sums(count, ((s.size, s.saver, s.saver + 1) for s in every if s.saver and s.saver < s.last))
        self.held = _sums(count, ((s.size, s.saver, s.last) for s in every if s.saver and s.saver < s.last))
        # Adam makes two temporaries of a parameter, when the gradients of all are there.
        self.optimizer = float(self.parameters[-1]) + 2 * flow.graph["largest"]
        self.forward = kept + waiting
        # In a backward pass the gradients of the parameters from the node on are there: those before it are not.
        self.backward = kept + gradients + made - np.concatenate([[0.0], self.parameters[:-1]])

    def loads(self, ends: Sequence[int], synthesizers: Numbers, arrival: Numbers) -> Loads:
        """The peak of every segment, or of the optimizer's step where that is higher.

        Args:
            ends: Numbers of the nodes that they lie between: 0, the ends of the segments but the last, the last node.
            synthesizers: What those at each end take from their prediction until their target has come.
            arrival: What is made when the targets come: when the segment above has gone backward.
        """
        places = np.asarray(ends)

        def row(i: int) -> Numbers:
            start, above = places[i], places[i + 1 :]
            forward = np.maximum.accumulate(self.forward[start + 1 :])[above - start - 1]
            backward = np.maximum.accumulate(np.append(-math.inf, self.backward[start + 1 :]))
            inside = backward[above - start - 1]
            top = self.parameters[above] + self.crossing[above] + synthesizers[i + 1 :]
            trained = self.kept[start] - self.parameters[start] + arrival[i]
            back = top + np.maximum(np.maximum(inside, trained) + self.let_go[above], self.backward[above])
            base = self.parameters[start] + self.held[start] - self.kept[start] + synthesizers[i]
            peaks: Numbers = np.maximum(base + np.maximum(forward, back), self.optimizer)
            return peaks

        return row

    def peak(self, start: int, end: int, below: float, above: float, arrival: float) -> Peak:
        """The same for the segment from after node number `start` to `end`, and where it is.

        Args:
            below: What the synthesizers at its lower end take.
            above: What those at its upper end take.
            arrival: What is made when the targets of the former come.
        """
        nodes = np.arange(start + 1, end + 1)
        base = self.parameters[start] + self.held[start] - self.kept[start] + below
        top = self.parameters[end] + self.crossing[end] + above
        forward, backward = base + self.forward[nodes], base + top + self.backward[nodes]
        backward += self.let_go[end] * (nodes < end)
        on_the_way_back = bool(backward.max() >= forward.max())
        trained = base + top + self.kept[start] - self.parameters[start] + self.let_go[end] + arrival
        if trained > max(backward.max(), forward.max()):
            return Peak(float(trained), self.names[start], True)
        values = backward if on_the_way_back else forward
        return Peak(float(values.max()), self.names[start + int(values.argmax())], on_the_way_back)


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
            saver.setdefault(key, i)  # the loss keeps about as much as it is given
    return {k: _Storage(size[k], made[k], saver.get(k), last.get(k, made[k]), k in carries) for k in size}


def _users(flow: "nx.DiGraph[str]", storages: Mapping[int, _Storage]) -> dict[int, list[int]]:
    """Numbers of the nodes that read each storage and send a gradient back, but views: from the last on."""
    order = {name: i for i, name in enumerate(flow, 1)}
    users: dict[int, set[int]] = {key: set() for key in storages}
    for name in flow:
        node = flow_node(flow, name)
        for key in node.storages & users.keys() if node.carries_gradient else ():
            users[key] |= {order[user] for user in flow.successors(name) if key not in flow_node(flow, user).storages}
    return {key: sorted(numbers, reverse=True) for key, numbers in users.items()}


def _handed_on(
    flow: "nx.DiGraph[str]", storages: Mapping[int, _Storage], users: Mapping[int, Sequence[int]]
) -> dict[int, int]:
    """Until which node, on the way back, the gradient of a sum is also that of its terms: by number of the sum."""
    sums = {i: flow_node(flow, name).owns for i, name in enumerate(flow, 1) if flow_node(flow, name).is_sum}
    until: dict[int, int] = {}
    for key, numbers in users.items():
        if numbers and sums.get(numbers[0]):
            end = max([storages[key].made, *numbers[1:2]])
            until[numbers[0]] = min(until.get(numbers[0], end), end)
    return until


def _gradients(
    storages: Mapping[int, _Storage], users: Mapping[int, Sequence[int]], handed_on: Mapping[int, int]
) -> Iterator[tuple[float, int, int]]:
    """From where to where, on the way back, the gradient of each storage is there: (bytes, first, one past the last).

    A sum hands its own gradient on: until their next user is reached, its terms have none of their own.
    """
    for key, s in storages.items():
        if s.carries:
            last, *others = users[key] or [s.made + 1]
            end = max([s.made, *others[:1]]) if last in handed_on else last
            yield s.size, s.made, end
    made = {s.made: s.size for s in storages.values()}
    yield from ((made[i], until, i) for i, until in handed_on.items())


def _input_gradients(flow: "nx.DiGraph[str]") -> list[float]:
    """Bytes of the gradients that each node makes on the way back, for what it reads; a view makes none."""
    result = []
    output = list(flow)[-1]
    for name in flow:
        node = flow_node(flow, name)
        sources = [flow_node(flow, source) for source in flow.predecessors(name)]
        read = sum(source.bytes for source in sources if source.carries_gradient)
        makes = node.owns or node.mutates or name == output  # the loss makes the outputs'
        result.append(float(read) if makes and not node.is_sum else 0.0)
    return result


def _unless(saver: int | None, end: int) -> int:
    """From where autograd keeps it, it is counted there."""
    return end if saver is None else min(saver, end)


def _sums(count: int, spans: Iterable[tuple[float, int, int]]) -> Numbers:
    """For each number 0..count, the sum of what spans it: (amount, first, one past the last)."""
    steps = np.zeros(count + 2)
    for amount, first, end in spans:
        if first < end:
            steps[first] += amount
            steps[min(end, count + 1)] -= amount
    return np.cumsum(steps[:-1])
