"""Down-sets of a graph: with a node, such a set holds all nodes before it. A segment lies between two down-sets."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dni_fx.partition.workload import FLOATING, SLACK, Integers, Numbers, TooManyError, Workload

__all__ = ["Closures", "Window", "window"]

Rows = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Closures:
    """The weight of each node with all nodes before it, and with all nodes after it."""

    below: Numbers
    above: Numbers

    @classmethod
    def of(cls, work: Workload) -> "Closures":
        """Sum the weights.

        Raises:
            TooManyError: If the sums take too much work.
        """
        below = _closure(work.before, work.after, work.weight)
        n = len(work.weight)

        def flip(rows: Rows) -> Rows:
            return tuple(tuple(n - 1 - i for i in row) for row in reversed(rows))

        above = _closure(flip(work.after), flip(work.before), work.weight[::-1])
        return cls(below, above[::-1])


def _closure(before: Rows, after: Rows, weight: Numbers) -> Numbers:
    """The weight of each node with all nodes before it.

    Nodes on every path split the graph into parts. Within a part, a set of nodes is an integer with one bit a node.
    """
    result = np.zeros(len(weight))
    first, done = 0, 0.0  # the first node of a part, and the weight of all nodes before the part
    for last in _ends(before, after):
        part = range(first, last)
        if len(part) > 20_000:
            raise TooManyError
        masks: list[int] = []
        for node in part:
            mask = 1 << (node - first)
            for source in before[node]:
                if source >= first:
                    mask |= masks[source - first]
            masks.append(mask)
        result[first:last] = done + _weights(masks, weight[first:last])
        done += float(weight[first:last].sum())
        first = last
    for node, sources in enumerate(before):  # sums are rounded: a larger set must never seem to weigh less
        result[node] = max([result[node], *(result[source] for source in sources)])
    return result


def _ends(before: Rows, after: Rows) -> Iterator[int]:
    """Find the nodes that lie on every path: yield the place after each, and the end of the graph."""
    n = len(before)
    sinks = np.zeros(n + 1, dtype=int)  # number of nodes up to here that no node up to here uses
    sources = np.zeros(n + 1, dtype=int)  # number of nodes from here on that use no node from here on
    for node in range(n):
        sinks[node] += 1
        sinks[min(after[node], default=n)] -= 1
        sources[node] += 1
        sources[max(before[node], default=-1)] -= 1  # the last entry collects the nodes without sources
    only_sink = np.cumsum(sinks[:n]) == 1
    only_source = np.cumsum(sources[:n][::-1])[::-1] == 1
    yield from (int(node) + 1 for node in np.flatnonzero(only_sink & only_source) if node < n - 1)
    yield n


def _weights(masks: list[int], weight: Numbers) -> Numbers:
    """The weight of each set; bit i of a mask stands for node i."""
    if len(masks) == 1:
        return weight
    size = (len(weight) + 7) // 8
    step = max(1, 2**24 // len(weight))
    parts = []
    for start in range(0, len(masks), step):
        chunk = masks[start : start + step]
        raw = np.frombuffer(b"".join(mask.to_bytes(size, "little") for mask in chunk), dtype=np.uint8)
        bits = np.unpackbits(raw.reshape(len(chunk), size), axis=1, bitorder="little", count=len(weight))
        parts.append(bits @ weight)
    return np.concatenate(parts)


@dataclass(frozen=True)
class Window:
    """Down-sets of about the same weight, one a row, in ascending order of their weight."""

    inside: NDArray[np.bool_]  # one entry a node: every down-set holds the node
    undecided: Integers  # nodes that only some of the down-sets hold
    member: NDArray[np.uint8]  # one column an undecided node: the down-set holds the node
    weight: Numbers
    outputs: Integers  # outputs that may be alive at the end of a down-set
    made: NDArray[np.bool_]  # one column an output: the output is made inside the down-set
    used: NDArray[np.unsignedinteger[Any]]  # one column an output: how many of its users lie inside
    crossing: Numbers  # cost of the outputs that are alive

    def keep(self, rows: NDArray[np.bool_] | Integers) -> "Window":
        return Window(
            self.inside,
            self.undecided,
            self.member[rows],
            self.weight[rows],
            self.outputs,
            self.made[rows],
            self.used[rows],
            self.crossing[rows],
        )


def window(work: Workload, closures: Closures, low: float, high: float, cap: int) -> Window:
    """All down-sets that weigh between `low` and `high`.

    Args:
        cap: The most down-sets; they may take 100 times as many bits.

    Raises:
        TooManyError: If there are more.
    """
    slack = SLACK * work.total
    low, high = low - slack, high + slack
    inside = closures.above > work.total - low
    undecided = np.flatnonzero(~inside & (closures.below <= high))
    base = float(work.weight[inside].sum())
    masks, weight = _enumerate(work, undecided, base, low, high, cap)
    order = np.argsort(weight, kind="stable")
    raw = np.ascontiguousarray(masks[:, order].T).view(np.uint8)
    member = np.unpackbits(raw, axis=1, bitorder="little", count=len(undecided)) if len(undecided) else raw[:, :0]
    return _with_outputs(work, inside, undecided, member, weight[order])


def _enumerate(
    work: Workload, undecided: Integers, base: float, low: float, high: float, cap: int
) -> tuple[NDArray[np.uint64], Numbers]:
    """Enumerate sets as bits: node by node, in topological order, each set so far is kept without and with the node.

    Sets that can no longer weigh enough are dropped only if they are more than half: dropping copies all other sets.
    """
    bit = {int(node): i for i, node in enumerate(undecided)}
    masks = np.zeros((max(1, -(-len(undecided) // 64)), 64), dtype=np.uint64)
    weight = np.full(64, base)
    count = 1
    rest = float(work.weight[undecided].sum())
    low -= SLACK * work.total  # the differences below are rounded
    for node, i in bit.items():
        enough = weight[:count] + rest >= low
        if 2 * np.count_nonzero(enough) < count:
            masks, weight, enough = masks[:, :count][:, enough], weight[:count][enough], enough[enough]
            count = len(weight)
        own = float(work.weight[node])
        fits = enough & (weight[:count] + own <= high)
        for word, bits in _needed(work.before[node], bit).items():
            fits &= (masks[word, :count] & bits) == bits
        chosen = np.flatnonzero(fits)
        if count + len(chosen) > len(weight):
            masks, weight = np.concatenate([masks, masks], axis=1), np.concatenate([weight, weight])
        new = slice(count, count + len(chosen))
        masks[:, new], weight[new] = masks[:, chosen], weight[chosen] + own
        masks[i // 64, new] |= np.uint64(1 << i % 64)
        count = new.stop
        rest -= own
        if count > 2 * cap or count * len(undecided) > 200 * cap:
            raise TooManyError
    enough = weight[:count] >= low
    return masks[:, :count][:, enough], weight[:count][enough]


def _needed(sources: tuple[int, ...], bit: dict[int, int]) -> dict[int, np.uint64]:
    """The bits of the undecided sources, by the number of the word that holds them."""
    needed: dict[int, int] = {}
    for source in sources:
        if source in bit:
            word, place = divmod(bit[source], 64)
            needed[word] = needed.get(word, 0) | 1 << place
    return {word: np.uint64(bits) for word, bits in needed.items()}


def _with_outputs(
    work: Workload, inside: NDArray[np.bool_], undecided: Integers, member: NDArray[np.uint8], weight: Numbers
) -> Window:
    """Find the outputs that may be alive, and complete the window.

    Down-sets are columns here, and rows in the window: sums over nodes are then sums of whole rows of memory.
    """
    place = np.full(len(work.weight), -1)
    place[undecided] = np.arange(len(undecided))
    always = np.bincount(work.used, inside[work.user], len(work.cost)).astype(np.int64)
    maybe = np.bincount(work.used, place[work.user] >= 0, len(work.cost)).astype(np.int64)
    floats = work.producer == FLOATING
    can_be_made = np.where(floats, always + maybe > 0, (inside | (place >= 0))[work.producer])
    outputs = np.flatnonzero(can_be_made & (always < work.uses))
    column = np.full(len(work.cost), -1)
    column[outputs] = np.arange(len(outputs))

    members = np.ascontiguousarray(member.T)
    used = np.repeat(always[outputs, None].astype(np.min_scalar_type(work.uses.max(initial=0))), len(weight), axis=1)
    open_uses = np.flatnonzero((place[work.user] >= 0) & (column[work.used] >= 0))  # in ascending order of the output
    touched, starts = np.unique(column[work.used[open_uses]], return_index=True)
    if len(touched):
        used[touched] += np.add.reduceat(members[place[work.user[open_uses]]], starts, axis=0, dtype=used.dtype)
    producer = work.producer[outputs]
    made = used > 0
    made[~floats[outputs]] = inside[producer[~floats[outputs]], None]
    movable = np.flatnonzero(~floats[outputs] & (place[producer] >= 0))
    made[movable] = members[place[producer[movable]]] == 1
    crossing = np.zeros(len(weight))
    for some in np.array_split(np.arange(len(outputs)), len(outputs) // 256 + 1):
        crossing += work.cost[outputs[some]] @ (made[some] & (used[some] < work.uses[outputs[some], None]))
    return Window(inside, undecided, member, weight, outputs, made.T, used.T, crossing)
