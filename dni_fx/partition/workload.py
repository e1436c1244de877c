"""A graph to be split, as plain numbers: the weights of its nodes, and the producer and users of each output.

Nodes are numbered in a topological order. An output has one producer and one or more users, never the producer itself.
An output is alive at a cut if its producer lies below the cut and a user above. The producer of a floating output is no
node: such a producer weighs nothing, has no inputs, and lies where the first user lies.
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

Objective = Literal["memory", "throughput"]

FLOATING = -1  # the producer of a floating output

SLACK = 1e-11  # relative to the total weight: the most that rounding adds to a sum


class TooManyError(Exception):
    """There are too many down-sets for the exact method."""


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

    def made_at(self, label: Integers) -> Integers:
        """Where each output is made, from the place of each node; a floating output is made at its first use."""
        made = np.where(self.producer >= 0, label[self.producer], len(label)) if len(label) else self.producer
        floating = self.producer[self.used] < 0
        np.minimum.at(made, self.used[floating], label[self.user[floating]])
        return made

    def last_used_at(self, label: Integers) -> Integers:
        """Where each output is used last."""
        last_used = np.full(len(self.cost), -1)
        np.maximum.at(last_used, self.used, label[self.user])
        return last_used

    def loads_of(self, label: Integers, segments: int, objective: Objective) -> Numbers:
        """The load of each segment, from the segment of each node: the definitions of `partition.partition`."""
        loads: Numbers = np.bincount(label, self.weight, segments).astype(float)
        made, last_used = self.made_at(label), self.last_used_at(label)
        if objective == "memory":
            kept = np.flatnonzero(last_used > made)
            change = np.bincount(made[kept], self.cost[kept], segments + 1).astype(float)
            change -= np.bincount(last_used[kept] + 1, self.cost[kept], segments + 1)
            loads += np.cumsum(change)[:segments]
            return loads
        leaves = last_used > made
        loads += np.bincount(made[leaves], self.cost[leaves], segments)
        pairs = np.unique(self.used * segments + label[self.user])
        output, entered = pairs // segments, pairs % segments
        enters = entered > made[output]
        return loads + np.bincount(entered[enters], self.cost[output[enters]], segments)
