"""Read the arguments of `partition` from the user's graph and numbers, and refuse wrong ones."""

import math
import operator
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any, get_args

import networkx as nx

from dni_fx.errors import DniFxError
from dni_fx.partition.contraction import Contraction
from dni_fx.partition.workload import Objective

__all__ = ["Instance", "checked_budget", "checked_objective", "checked_segments"]


@dataclass(frozen=True)
class Instance:
    """The numbers of a graph's nodes, in the order of the graph."""

    nodes: list[Any]
    weights: list[float]
    transfers: list[float]
    users: dict[int, list[int]]

    @classmethod
    def of(cls, graph: "nx.DiGraph[Any]", node_weight: str, transfer_weight: str) -> "Instance":
        """Read the attributes of a graph.

        Raises:
            DniFxError: If the graph is empty or no DAG, or a number is negative or not finite.
        """
        if not isinstance(graph, nx.DiGraph):
            raise DniFxError(f"a directed graph is needed (networkx.DiGraph), this is a {type(graph).__name__}")
        if not len(graph):
            raise DniFxError("the graph is empty: there is nothing to split")
        if not nx.is_directed_acyclic_graph(graph):
            cycle = " -> ".join(repr(edge[0]) for edge in nx.find_cycle(graph))
            raise DniFxError(f"the graph has a cycle: {cycle} -> ...")
        nodes = list(graph)
        weights = [_number(graph, node, node_weight) for node in nodes]
        if not math.isfinite(sum(weights)):
            raise DniFxError(f"the sum of the attribute {node_weight!r} over all nodes is too large for a number")
        index = {node: i for i, node in enumerate(nodes)}
        users = {i: [index[user] for user in graph.successors(node)] for node, i in index.items()}
        return cls(nodes, weights, [_number(graph, node, transfer_weight) for node in nodes], users)

    def contract(self, together: Iterable[Iterable[Hashable]]) -> tuple[Contraction, float]:
        """The contracted graph, in numbers of about 1, and their unit: a power of two, so that no number is rounded.

        Raises:
            DniFxError: If a name in `together` is no node.
        """
        total = sum(self.weights)
        exponent = math.frexp(total)[1]
        weights = [math.ldexp(weight, -exponent) for weight in self.weights]
        # One segment alone weighs `total`: no best split moves an output that costs more than that.
        transfers = [math.ldexp(min(transfer, 4 * total), -exponent) for transfer in self.transfers]
        return Contraction(self._groups(together), weights, self.users, transfers), math.ldexp(1.0, exponent)

    def _groups(self, together: Iterable[Iterable[Hashable]]) -> list[list[int]]:
        """Nodes that must share a segment: strongly connected components, once each group has been made a cycle."""
        index = {node: i for i, node in enumerate(self.nodes)}
        links: nx.DiGraph[int] = nx.DiGraph()
        for group in together:
            members = list(group)
            for name in members:
                if not isinstance(name, Hashable) or name not in index:
                    raise DniFxError(f"{name!r} is to stay together with others, and is no node of the graph")
            links.add_edges_from((index[a], index[b]) for a, b in zip(members, members[1:] + members[:1], strict=True))
        if not links:
            return [[i] for i in range(len(self.nodes))]
        links.add_nodes_from(range(len(self.nodes)))
        links.add_edges_from((i, user) for i, users in self.users.items() for user in users)
        return sorted(sorted(component) for component in nx.strongly_connected_components(links))


def _number(graph: "nx.DiGraph[Any]", node: Any, attribute: str) -> float:
    value = graph.nodes[node].get(attribute, 0)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise DniFxError(f"node {node!r}: the attribute {attribute!r} is {value!r}, not a number from 0 on")
    return number


def checked_segments(segments: Any) -> int:
    """The number of segments; DniFxError if there is no such number."""
    try:
        count = operator.index(segments)
    except TypeError:
        count = 0
    if count < 1:
        raise DniFxError(f"segments is {segments!r}: a graph is split into a whole number of segments, at least 1")
    return count


def checked_objective(name: str) -> Objective:
    """The objective; DniFxError, with all objectives, if there is no such one."""
    known: tuple[Objective, ...] = get_args(Objective)
    for objective in known:
        if name == objective:
            return objective
    raise DniFxError(f"objective={name!r}: there are {', '.join(known)}")


def checked_budget(budget: Any) -> float:
    """The highest load that is allowed, infinity without a budget; DniFxError if the budget is no load."""
    try:
        number = math.inf if budget is None else float(budget)
    except (TypeError, ValueError):
        number = math.nan
    if not number >= 0:
        raise DniFxError(f"budget is {budget!r}, not a number from 0 on")
    return number
