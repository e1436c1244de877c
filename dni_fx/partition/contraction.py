"""Contraction: nodes that must lie, or without loss may lie, in one segment become one node.

The members of a group must lie together, and so must all nodes on paths between them: otherwise the segment would not
be convex. A node that weighs nothing may join a neighbour if, in any split and for every objective, moving the node to
the neighbour's segment makes no segment heavier. So at least one best split is left.
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
    """Nodes that have been merged."""

    members: list[int]
    weight: float
    used: set[int] = field(default_factory=set)  # numbers of outputs
    made: set[int] = field(default_factory=set)


class Contraction:
    """A workload, and the way back to the nodes that it was made from.

    Args:
        groups: The nodes 0, 1, ... that lie together: each node is in exactly one group, and no path leads out of a
            group and back into it.
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
                self._groups[i].made.add(node)
                for user in elsewhere:
                    self._groups[user].used.add(node)
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
            around = {self._outputs[o].producer for o in group.used}.union(
                *(self._outputs[o].users for o in group.made), {into}
            )
            self._merge(key, into)
            queue.extend(k for k in sorted(around) if self._groups[k].weight == 0)

    def _neighbour(self, group: _Group, key: int) -> int | None:
        """The group that a weightless group can join in any split, or None.

        Its only user, if the outputs that it makes cost as much to move as the outputs that it uses, or more. Its only
        source, if the outputs that no other group uses cost as much to move as the outputs that it makes, or more.
        """
        made = sum(self._outputs[o].cost for o in group.made)
        users = set().union(*(self._outputs[o].users for o in group.made))
        if len(users) == 1 and sum(self._outputs[o].cost for o in group.used) <= made:
            return users.pop()
        sources = {self._outputs[o].producer for o in group.used}
        alone = sum(self._outputs[o].cost for o in group.used if self._outputs[o].users == {key})
        return sources.pop() if len(sources) == 1 and made <= alone else None

    def _merge(self, key: int, into: int) -> None:
        """Merge a weightless group into another; the work depends on the degree of the weightless group only."""
        group, target = self._groups.pop(key), self._groups[into]
        target.members += group.members
        for number in group.used:
            output = self._outputs[number]
            output.users.discard(key)
            if output.producer != into:
                output.users.add(into)
                target.used.add(number)
        for number in group.made:
            self._outputs[number].producer = into
            self._outputs[number].users.discard(into)
        target.used -= group.made
        target.made |= group.made
        for number in [n for n in group.used | group.made if not self._outputs[n].users]:
            target.made.discard(number)
            del self._outputs[number]

    def _float_all(self) -> list[tuple[_Group, set[int]]]:
        """Take out weightless sources: each lies where it is first used, and needs no node of its own."""
        floating = []
        for key, group in list(self._groups.items()):
            if group.weight == 0 and not group.used and len(group.made) <= 1:
                del self._groups[key]
                users: set[int] = set()
                for number in group.made:
                    users = self._outputs[number].users
                    self._outputs[number].producer = FLOATING
                floating.append((group, users))
        return floating

    def _topological(self) -> list[int]:
        """Order the groups; of the groups that are ready, the one with the lowest node number is next."""
        flow: nx.DiGraph[int] = nx.DiGraph()
        flow.add_nodes_from(self._groups)
        for key, group in self._groups.items():
            sources = {self._outputs[number].producer for number in group.used} - {FLOATING}
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
