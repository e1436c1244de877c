"""Contraction: nodes that must lie, or without loss may lie, in one segment become one node.

What must lie together: a group, and all that lies on paths between its members, or else the segment would not be
convex. What may: nodes that weigh nothing. For each rule holds, under every objective: in any split, moving the node
to its neighbour's segment makes no segment heavier, and no cut wider. So at least one best split survives.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import networkx as nx
import numpy as np

from dni_fx.partition.workload import FLOATING, Workload

__all__ = ["Contraction"]


@dataclass
class _Output:
    producer: int
    users: set[int]
    cost: float


@dataclass
class _Group:
    """Nodes that are one by now."""

    members: list[int]
    weight: float
    takes: set[int] = field(default_factory=set)  # outputs, by number
    gives: set[int] = field(default_factory=set)


class Contraction:
    """A workload, and the way back to the nodes that it was made from.

    Args:
        groups: Which of the nodes 0, 1, ... lie together: each in exactly one group; none of the groups on a path from
            a group to itself.
        weights: Of the nodes.
        users: Of the nodes' outputs.
        costs: Of the nodes' outputs.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[int]],
        weights: Sequence[float],
        users: Mapping[int, Iterable[int]],
        costs: Sequence[float],
    ) -> None:
        home = {node: i for i, group in enumerate(groups) for node in group}
        self._groups = {i: _Group(list(g), sum(weights[node] for node in g)) for i, g in enumerate(groups)}
        self._outputs: dict[int, _Output] = {}
        for node, i in home.items():
            elsewhere = {home[user] for user in users.get(node, ())} - {i}
            if elsewhere:
                self._outputs[node] = _Output(i, elsewhere, costs[node])
                self._groups[i].gives.add(node)
                for user in elsewhere:
                    self._groups[user].takes.add(node)
        self._merge_all()
        self._floating = self._float_all()
        self._order = self._topological()
        self.workload = self._workload()

    def segments(self, label: Sequence[int], count: int) -> list[list[int]]:
        """The original nodes of each segment."""
        result: list[list[int]] = [[] for _ in range(count)]
        place = dict(zip(self._order, label, strict=True))
        for key, group in self._groups.items():
            result[place[key]] += group.members
        for group, users in self._floating:
            result[min((place[user] for user in users), default=0)] += group.members
        return [sorted(segment) for segment in result]

    def _merge_all(self) -> None:
        queue = deque(key for key, group in self._groups.items() if group.weight == 0)
        while queue:
            key = queue.popleft()
            if key not in self._groups:
                continue
            into = self._neighbour(self._groups[key], key)
            if into is None:
                continue
            group = self._groups[key]
            around = {self._outputs[o].producer for o in group.takes}.union(
                *(self._outputs[o].users for o in group.gives), {into}
            )
            self._merge(key, into)
            queue.extend(k for k in sorted(around) if self._groups[k].weight == 0)

    def _neighbour(self, group: _Group, key: int) -> int | None:
        """The group that a weightless one can always go with.

        With its only user, where what it takes is no more to move than what it gives. With its only source, where what
        it gives is no more than what it alone takes.
        """
        gives = sum(self._outputs[o].cost for o in group.gives)
        users = set().union(*(self._outputs[o].users for o in group.gives))
        if len(users) == 1 and sum(self._outputs[o].cost for o in group.takes) <= gives:
            return users.pop()
        sources = {self._outputs[o].producer for o in group.takes}
        alone = sum(self._outputs[o].cost for o in group.takes if self._outputs[o].users == {key})
        return sources.pop() if len(sources) == 1 and gives <= alone else None

    def _merge(self, key: int, into: int) -> None:
        """The work is that of the degree of the weightless group, not of the one it goes into."""
        group, target = self._groups.pop(key), self._groups[into]
        target.members += group.members
        for number in group.takes:
            output = self._outputs[number]
            output.users.discard(key)
            if output.producer != into:
                output.users.add(into)
                target.takes.add(number)
        for number in group.gives:
            self._outputs[number].producer = into
            self._outputs[number].users.discard(into)
        target.takes -= group.gives
        target.gives |= group.gives
        for number in [n for n in group.takes | group.gives if not self._outputs[n].users]:
            target.gives.discard(number)
            del self._outputs[number]

    def _float_all(self) -> list[tuple[_Group, set[int]]]:
        """Weightless sources belong where they are first used: they need no node of their own."""
        floating = []
        for key, group in list(self._groups.items()):
            if group.weight == 0 and not group.takes and len(group.gives) <= 1:
                del self._groups[key]
                users: set[int] = set()
                for number in group.gives:
                    users = self._outputs[number].users
                    self._outputs[number].producer = FLOATING
                floating.append((group, users))
        return floating

    def _topological(self) -> list[int]:
        """The order of the given numbers where that is one: of those that are ready the first."""
        flow: nx.DiGraph[int] = nx.DiGraph()
        flow.add_nodes_from(self._groups)
        for key, group in self._groups.items():
            sources = {self._outputs[number].producer for number in group.takes} - {FLOATING}
            flow.add_edges_from((source, key) for source in sources)
        return list(nx.lexicographical_topological_sort(flow, key=lambda key: min(self._groups[key].members)))

    def _workload(self) -> Workload:
        index = {key: i for i, key in enumerate(self._order)} | {FLOATING: FLOATING}
        before: list[set[int]] = [set() for _ in self._order]
        costs: dict[tuple[int, tuple[int, ...]], float] = {}  # outputs that always move together are one
        for output in self._outputs.values():
            users = tuple(sorted(index[user] for user in output.users))
            producer = index[output.producer]
            if producer != FLOATING:
                for user in users:
                    before[user].add(producer)
            if output.cost and (producer != FLOATING or len(users) > 1):
                costs[producer, users] = costs.get((producer, users), 0.0) + output.cost
        return Workload(
            np.array([self._groups[key].weight for key in self._order], dtype=float),
            tuple(tuple(sorted(b)) for b in before),
            np.array([producer for producer, _ in costs], dtype=np.int64),
            np.array(list(costs.values()), dtype=float),
            np.array([i for i, (_, users) in enumerate(costs) for _ in users], dtype=np.int64),
            np.array([user for _, users in costs for user in users], dtype=np.int64),
        )
