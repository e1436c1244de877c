"""What a node weighs together with all that must come before it, or after it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dni_fx.solver.workload import Numbers, TooManyError, Workload

__all__ = ["Closures"]

Rows = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Closures:
    """The weight of each node with all that comes before it, and with all that comes after it."""

    below: Numbers
    above: Numbers

    @classmethod
    def of(cls, work: Workload) -> "Closures":
        """Raises TooManyError where that is too much work."""
        below = _closure(work.before, work.after, work.weight)
        n = len(work.weight)

        def flip(rows: Rows) -> Rows:
            return tuple(tuple(n - 1 - i for i in row) for row in reversed(rows))

        above = _closure(flip(work.after), flip(work.before), work.weight[::-1])
        return cls(below, above[::-1])


def _closure(before: Rows, after: Rows, weight: Numbers) -> Numbers:
    """Between two nodes that lie on every path, sets of nodes as the bits of numbers."""
    result = np.zeros(len(weight))
    first, done = 0, 0.0  # where a part of the graph starts, and the weight of all before it
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
    for node, sources in enumerate(before):  # sums are rounded: what holds more must never seem to weigh less
        result[node] = max([result[node], *(result[source] for source in sources)])
    return result


def _ends(before: Rows, after: Rows) -> Iterator[int]:
    """Places after a node that all before it come before, and that comes before all after it."""
    n = len(before)
    sinks = np.zeros(n + 1, dtype=int)  # of the nodes up to here, those that nothing up to here uses
    sources = np.zeros(n + 1, dtype=int)  # of the nodes from here on, those that use nothing from here on
    for node in range(n):
        sinks[node] += 1
        sinks[min(after[node], default=n)] -= 1
        sources[node] += 1
        sources[max(before[node], default=-1)] -= 1  # the last entry collects those without any
    only_sink = np.cumsum(sinks[:n]) == 1
    only_source = np.cumsum(sources[:n][::-1])[::-1] == 1
    yield from (int(node) + 1 for node in np.flatnonzero(only_sink & only_source) if node < n - 1)
    yield n


def _weights(masks: list[int], weight: Numbers) -> Numbers:
    """The weight of each set."""
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
