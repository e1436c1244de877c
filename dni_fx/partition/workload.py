"""A graph to be split, as plain numbers: what its nodes weigh, and which output moves from where to where.

Nodes are numbered in a topological order. An output has one producer and one or more users, never the producer itself;
it is alive at a cut where its producer lies below and a user above. Some producers are no nodes: they weigh nothing,
have no inputs, and lie wherever the first user lies.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["FLOATING", "SLACK", "Integers", "Numbers", "Objective", "TooManyError", "Workload"]

Numbers = NDArray[np.float64]

Integers = NDArray[np.int64]

Objective = Literal["throughput", "memory"]

FLOATING = -1  # the producer of an output that is no node

SLACK = 1e-11  # relative to the total weight: what rounding may add to a sum


class TooManyError(Exception):
    """More down-sets than may be looked at."""


@dataclass(frozen=True)
class Workload:
    """Arrays over nodes, over outputs, and over uses (pairs of an output and a user)."""

    weight: Numbers
    before: tuple[tuple[int, ...], ...]  # each node's predecessors
    producer: Integers  # of each output
    cost: Numbers  # of each output: positive
    used: Integers  # the output of each use
    user: Integers  # the node of each use

    @cached_property
    def total(self) -> float:
        return math.fsum(self.weight)

    @cached_property
    def after(self) -> tuple[tuple[int, ...], ...]:
        """Each node's successors."""
        after: list[list[int]] = [[] for _ in self.before]
        for node, sources in enumerate(self.before):
            for source in sources:
                after[source].append(node)
        return tuple(map(tuple, after))

    @cached_property
    def uses(self) -> Integers:
        """How many users each output has."""
        return np.bincount(self.used, minlength=len(self.cost))

    def born(self, label: Integers) -> Integers:
        """Where each output is made, for the places of all nodes: a floating one at the first use."""
        born = np.where(self.producer >= 0, label[self.producer], len(label)) if len(label) else self.producer
        floating = self.producer[self.used] < 0
        np.minimum.at(born, self.used[floating], label[self.user[floating]])
        return born

    def dies(self, label: Integers) -> Integers:
        """Where each output is used last."""
        dies = np.full(len(self.cost), -1)
        np.maximum.at(dies, self.used, label[self.user])
        return dies

    def loads_of(self, label: Integers, segments: int, objective: Objective) -> Numbers:
        """The load of each segment, from the segment of each node: the definitions of `partition.partition`."""
        loads: Numbers = np.bincount(label, self.weight, segments).astype(float)
        born, dies = self.born(label), self.dies(label)
        if objective == "memory":
            kept = np.flatnonzero(dies > born)
            change = np.bincount(born[kept], self.cost[kept], segments + 1).astype(float)
            change -= np.bincount(dies[kept] + 1, self.cost[kept], segments + 1)
            loads += np.cumsum(change)[:segments]
            return loads
        leaves = dies > born
        loads += np.bincount(born[leaves], self.cost[leaves], segments)
        pairs = np.unique(self.used * segments + label[self.user])
        output, entered = pairs // segments, pairs % segments
        enters = entered > born[output]
        return loads + np.bincount(entered[enters], self.cost[output[enters]], segments)
