"""Where to divide a segment into pieces whose activations the backward pass computes again."""

import math
from collections.abc import Iterator, Sequence, Set
from functools import cached_property

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from dni_fx.cost.memory import Memory
from dni_fx.partition import Numbers, find_positions, flow_node

__all__ = ["PieceFinder", "Pieces"]

Pieces = Sequence[tuple[int, int]]  # the numbers of the first and the last node of each, from 1

_MOST_PLACES = 96  # in one segment: the time of the search grows with the square of this number

_SIZES = 16  # of the largest piece, that are tried


class PieceFinder:
    """Finds the pieces of any segment of a graph.

    A piece ends where a cut is legal, and where no later node writes to a value that crosses: the piece above takes
    that value a second time. A node that writes to an input or a buffer is in no piece, nor a node that reads it, nor a
    block that no cut may divide.

    Args:
        flow: The result of `graph.dataflow`.
        memory: The memory of the same graph, where nothing is computed again.
    """

    def __init__(self, flow: "nx.DiGraph[str]", memory: Memory) -> None:
        self.flow, self.memory = flow, memory
        self._found: dict[tuple[int, int, bool], tuple[tuple[int, int], ...]] = {}

    def find(self, start: int, end: int, *, keep_last: bool) -> tuple[tuple[int, int], ...]:
        """The pieces of the segment after node number `start` up to number `end`, for the least memory at once.

        Args:
            keep_last: The last stretch is kept: its backward pass comes next.
        """
        key = (start, end, keep_last)
        if key not in self._found:
            self._found[key] = tuple(self._find(start, end, keep_last))
        return self._found[key]

    def _find(self, start: int, end: int, keep_last: bool) -> Iterator[tuple[int, int]]:
        places = self._places(start, end)
        kept = self.memory.kept[places]
        saved = kept[None, :] - kept[:, None]  # by the nodes between two places
        made = self._made_below_used_above(places)
        outputs = np.diagonal(made)[None, :] - made  # bytes made between two places and used behind the second
        can = self._can_run_twice(places)
        sizes = np.unique(np.geomspace(max(1.0, float(np.diff(kept).max())), max(1.0, float(saved[0, -1])), _SIZES))
        least, best = math.inf, list[tuple[int, int, bool]]()
        for size in sizes:
            total, stretches = _shortest(saved, outputs, can, float(size), keep_last)
            if total < least:
                least, best = total, stretches
        for i, j, again in best:
            if again:
                yield int(places[i]) + 1, int(places[j])

    def _places(self, start: int, end: int) -> NDArray[np.int64]:
        """The start, the places where a piece may end, and the end; of many places, the narrowest in each stretch."""
        inside = [i for i in self._legal if start < i < end]
        if len(inside) > _MOST_PLACES:
            kept = self.memory.kept[inside] - self.memory.kept[start]
            narrowest: dict[int, int] = {}
            for place, below in zip(inside, kept, strict=True):
                stretch = int(_MOST_PLACES * below / max(1.0, kept[-1] + 1))
                if self._legal[place] <= self._legal[narrowest.setdefault(stretch, place)]:
                    narrowest[stretch] = place
            inside = list(narrowest.values())
        return np.array([start, *inside, end])

    @cached_property
    def _legal(self) -> dict[int, int]:
        """The bytes that cross each place where a piece may end, by the number of the node before the place."""
        written = self._last_writes
        last_use = self._last_uses
        crossing: set[int] = set()
        found: dict[int, int] = {}
        for position in find_positions(self.flow):
            number = position.index + 1
            crossing |= flow_node(self.flow, position.after).storages & self.memory.storages.keys()
            crossing = {key for key in crossing if last_use.get(key, 0) > number}
            if not position.obstacle and all(written.get(key, 0) <= number for key in crossing):
                found[number] = position.bytes
        return found

    @cached_property
    def _last_writes(self) -> dict[int, int]:
        return {key: i for i, name in enumerate(self.flow, 1) for key in flow_node(self.flow, name).mutates}

    @cached_property
    def _last_uses(self) -> dict[int, int]:
        order = {name: i for i, name in enumerate(self.flow, 1)}
        last: dict[int, int] = {}
        for name in self.flow:
            users = [order[user] for user in self.flow.successors(name)]
            for key in flow_node(self.flow, name).storages:
                last[key] = max([last.get(key, 0), *users])
        return last

    @cached_property
    def _unfit(self) -> NDArray[np.int64]:
        """For each number, how many nodes up to this one would compute another value a second time."""
        outside = self._last_writes.keys() - self.memory.storages.keys()  # inputs, parameters, buffers
        unfit = [bool(flow_node(self.flow, n).obstacle) or _touches(self.flow, n, outside) for n in self.flow]
        return np.cumsum([0, *unfit])

    def _can_run_twice(self, places: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the nodes between two places can be one piece."""
        unfit = self._unfit[places]
        fits: NDArray[np.bool_] = unfit[None, :] == unfit[:, None]
        crossing = [key for key, last in self._last_uses.items() if last > places[0]]
        made = {key: self.memory.storages[key].made for key in crossing if key in self.memory.storages}
        if any(made.get(key, math.inf) <= places[0] < self._last_writes.get(key, 0) for key in crossing):
            fits[0] = False  # a node writes to a value that crosses the lower cut
        return fits

    def _made_below_used_above(self, places: NDArray[np.int64]) -> Numbers:
        """Entry (i, j): the bytes that are made up to place i and used behind place j."""
        steps = np.zeros((len(places), len(places)))
        for s in self.memory.storages.values():
            i, j = np.searchsorted(places, s.made), np.searchsorted(places, s.last) - 1
            if i < len(places) and places[0] < s.made and j >= i:
                steps[i, j] += s.size
        found: Numbers = steps.cumsum(0)[:, ::-1].cumsum(1)[:, ::-1]
        return found


def _touches(flow: "nx.DiGraph[str]", name: str, outside: Set[int]) -> bool:
    """Whether a node writes to memory from outside of the graph, or reads there what a node writes.

    A counter may be written to: the second run leaves the write out, and no node of a piece reads the counter.
    """
    node = flow_node(flow, name)
    sources = [flow_node(flow, source).storages for source in flow.predecessors(name)]
    if not any(storages & outside for storages in sources):
        return False
    counts = node.kind.split(":")[0].endswith("_") and not node.carries_gradient
    return not (counts and all(storages <= outside for storages in sources))


def _shortest(
    saved: Numbers, outputs: Numbers, can: NDArray[np.bool_], size: float, keep_last: bool
) -> tuple[float, list[tuple[int, int, bool]]]:
    """The bytes kept at once if no piece saves more than `size`, and the stretches: places, and whether to run twice.

    A stretch that runs twice costs its outputs, which the next one takes; a stretch that is kept, all that it saves.
    """
    count = len(saved)
    costs, origins = np.full(count, math.inf), np.zeros(count, dtype=int)
    costs[0] = 0.0
    twice = np.zeros(count, dtype=bool)
    for j in range(1, count):
        is_free = keep_last and j == count - 1
        fits = saved[:j, j] <= size * (1 + 1e-9)
        runs_twice = np.where(can[:j, j] & fits & (not is_free), outputs[:j, j], math.inf)
        keeps = np.where(fits, 0.0, math.inf) if is_free else saved[:j, j] + outputs[:j, j]
        both = costs[:j] + np.minimum(runs_twice, keeps)
        origins[j] = i = int(both.argmin())
        costs[j], twice[j] = both[i], runs_twice[i] < keeps[i]
    stretches = []
    j = count - 1
    while j > 0:
        stretches.append((int(origins[j]), j, bool(twice[j])))
        j = int(origins[j])
    return float(costs[-1]) + size, stretches[::-1]
