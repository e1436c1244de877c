"""The sums of a model whose shortcut has layers of its own, on a networkx DAG of plain numbers."""

import networkx as nx

from dni_fx.partition.flow_node import flow_node

__all__ = ["projection_sums"]


def projection_sums(flow: "nx.DiGraph[str]") -> frozenset[str]:
    """The sums of which no term is the value that the others are computed from.

    So it is where a residual block changes the shape, and has a projection shortcut, such as a 1x1 convolution (He et
    al. 2016, Sect. 3.3). Such a block is no residual branch that an exit can leave out: the shortcut alone is a weak
    layer, and throws most of a map away where it has a stride.
    """
    order = {name: place for place, name in enumerate(flow)}
    found: set[str] = set()
    for name in flow:
        terms = [term for term in flow.predecessors(name) if flow_node(flow, term).carries_gradient]
        if not flow_node(flow, name).is_sum or len(terms) < 2:
            continue
        if not any(_is_source(flow, order, _unchanged(flow, term), set(terms) - {term}) for term in terms):
            found.add(name)
    return frozenset(found)


def _unchanged(flow: "nx.DiGraph[str]", term: str) -> set[str]:
    """The values that a term is made from without a layer, back to the first ones that others use, too."""
    found: set[str] = set()
    waiting = [term]
    while waiting:
        name = waiting.pop()
        node = flow_node(flow, name)
        if name in found or not node.carries_gradient:
            continue
        found.add(name)
        users = [user for user in flow.successors(name) if flow_node(flow, user).carries_gradient]
        if not (node.is_layer or node.mixes or len(users) > 1):
            waiting += flow.predecessors(name)
    return found


def _is_source(flow: "nx.DiGraph[str]", order: dict[str, int], values: set[str], terms: set[str]) -> bool:
    """Whether each of the terms is computed from one of the values."""
    first = min(order[name] for name in values)

    def reaches(term: str) -> bool:
        seen: set[str] = set()
        waiting = [term]
        while waiting:
            name = waiting.pop()
            if name in values:
                return True
            if name not in seen and order[name] > first:
                seen.add(name)
                waiting += flow.predecessors(name)
        return False

    return all(map(reaches, terms))
