"""Topological orders to cut a graph along: nodes that are far apart in one order may be close in another."""

import heapq
import math

import numpy as np
from numpy.typing import NDArray

from dni_fx.partition import chain
from dni_fx.partition.workload import FLOATING, SLACK, Integers, Numbers, Objective, Workload

__all__ = ["is_chain", "orders", "split_along_order"]


def is_chain(work: Workload) -> bool:
    """Whether there is only one topological order."""
    return all(i in work.before[i + 1] for i in range(len(work.before) - 1))


def orders(work: Workload) -> list[Integers]:
    """Topological orders: the order of the graph, a depth-first one, and one in which few outputs are alive."""
    if is_chain(work):
        return [np.arange(len(work.weight))]
    return [np.arange(len(work.weight)), _depth_first(work), _narrow(work)]


def _depth_first(work: Workload) -> Integers:
    missing = [len(before) for before in work.before]
    stack = [node for node, count in reversed(list(enumerate(missing))) if count == 0]
    order = []
    while stack:
        node = stack.pop()
        order.append(node)
        for user in reversed(work.after[node]):
            missing[user] -= 1
            if missing[user] == 0:
                stack.append(user)
    return np.array(order)


def _narrow(work: Workload) -> Integers:
    """An order in which the next node is always the ready node that leaves the least cost of alive outputs."""
    n = len(work.weight)
    used: list[list[int]] = [[] for _ in range(n)]
    users: list[list[int]] = [[] for _ in work.cost]
    for output, user in zip(work.used.tolist(), work.user.tolist(), strict=True):
        used[user].append(output)
        users[output].append(user)
    change = [0.0] * n
    for output, producer in enumerate(work.producer.tolist()):
        if producer != FLOATING:
            change[producer] += float(work.cost[output])
        if len(users[output]) == 1:
            change[users[output][0]] -= float(work.cost[output])
    left = [len(u) for u in users]
    missing = [len(before) for before in work.before]
    ready = [(change[node], node) for node in range(n) if missing[node] == 0]
    heapq.heapify(ready)
    order: list[int] = []
    done = [False] * n
    while ready:
        node = heapq.heappop(ready)[1]
        if done[node]:
            continue
        done[node] = True
        order.append(node)
        for output in used[node]:
            left[output] -= 1
            if left[output] == 1:  # the last user frees the output
                last = next(user for user in users[output] if not done[user])
                change[last] -= float(work.cost[output])
                if missing[last] == 0:
                    heapq.heappush(ready, (change[last], last))
        for user in work.after[node]:
            missing[user] -= 1
            if missing[user] == 0:
                heapq.heappush(ready, (change[user], user))
    return np.array(order)


def split_along_order(work: Workload, order: Integers, segments: int, objective: Objective, floor: float) -> Integers:
    """The segment of each node, in the lightest split into at most `segments` intervals of the order.

    Args:
        floor: A lower bound of the heaviest load.
    """
    n = len(order)
    segments = min(segments, n)
    growth, limit = 0.01, floor
    lightest = chain.Split(math.inf, ())
    while lightest.value > limit:
        limit = min(floor * (1 + growth), work.total * (1 + 1e-9))
        growth *= 4
        loads_from = _LoadsFrom(work, order, segments, objective, limit)
        lightest = min(chain.lightest(loads_from, n, segments - 1), key=lambda split: split.value)
    label = np.zeros(n, dtype=np.int64)
    label[order] = np.searchsorted(lightest.cuts, np.arange(n), side="right")
    return label


class _LoadsFrom:
    """The loads of the segments that start at a place: a `chain.LoadsFrom`, fast if places are in ascending order.

    An output that is alive at a place has a next use and a last use. Both ends of a segment count its cost. If the
    segment ends before the last use, the output does not leave: the cost is subtracted once. If, for "throughput", the
    segment ends before the next use, the output does not enter either: the cost is subtracted once more.
    """

    def __init__(self, work: Workload, order: Integers, segments: int, objective: Objective, limit: float) -> None:
        n = len(order)
        place = np.empty(n, dtype=np.int64)
        place[order] = np.arange(n)
        made, last_used = work.made_at(place), work.last_used_at(place)
        change = np.bincount(made + 1, work.cost, n + 2) - np.bincount(last_used + 1, work.cost, n + 2)
        self._crossing: Numbers = np.cumsum(change)[: n + 1]
        self._crossing[np.abs(self._crossing) < SLACK * work.total] = 0.0  # only rounding
        self._limit = limit
        self._weight: Numbers = np.concatenate([[0.0], np.cumsum(work.weight[order])])
        self._objective = objective
        self._closed = ~self._open(segments, work.total)
        pairs = np.unique(work.used * (n + 1) + place[work.user])
        output, end = pairs // (n + 1), pairs % (n + 1)
        start = np.concatenate([[-1], end[:-1]])
        first = np.concatenate([[True], output[1:] != output[:-1]])
        start = np.where(first, made[output], start) if len(pairs) else end
        by_start = np.argsort(start, kind="stable")
        by_start = by_start[start[by_start] < end[by_start]]
        self._next, self._last, self._cost = end[by_start], last_used[output[by_start]], work.cost[output[by_start]]
        # For each place, the first pair of an output and its next use that starts there.
        self._starting = np.searchsorted(start[by_start], np.arange(n + 1))
        self._place, self._alive = 0, np.zeros(0, dtype=np.int64)

    def __call__(self, i: int) -> Numbers:
        stop = int(np.searchsorted(self._weight, self._weight[i] + self._limit, side="right"))
        row: Numbers = self._weight[i + 1 : stop] - self._weight[i]
        if not len(row) or self._closed[i]:
            return row[:0]
        row[self._closed[i + 1 : stop]] = math.inf
        row += self._crossing[i] + self._crossing[i + 1 : stop]
        alive = self._advance(i)
        row -= self._until(self._last[alive], alive, i, len(row))
        if self._objective == "throughput":
            row -= self._until(self._next[alive], alive, i, len(row))
        row[row > self._limit] = math.inf
        return row

    def _open(self, segments: int, total: float) -> NDArray[np.bool_]:
        """Places where a cut can be: for some number of segments below, neither side is too heavy."""
        fewest = (self._weight + self._crossing - SLACK * total) / self._limit  # number of segments below
        most = segments - (total - self._weight + self._crossing - SLACK * total) / self._limit
        result: NDArray[np.bool_] = np.ceil(fewest) <= np.floor(most)
        result[[0, -1]] = True
        return result

    def _until(self, use: Integers, alive: Integers, i: int, length: int) -> Numbers:
        """For each end of a segment, the cost of the outputs that are alive at i and whose `use` is at or after it."""
        counts = np.bincount(np.minimum(use - i, length), self._cost[alive], length + 1)
        return np.asarray(np.cumsum(counts[:0:-1])[::-1])

    def _advance(self, i: int) -> Integers:
        """The outputs that are alive at place i, as pairs of an output and its next use."""
        if i < self._place:
            self._place, self._alive = 0, self._alive[:0]
        if i > self._place:
            started = np.arange(self._starting[self._place], self._starting[i])
            alive = np.concatenate([self._alive, started])
            self._alive = alive[self._next[alive] >= i]
            self._place = i
        return self._alive
