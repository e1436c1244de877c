"""Down-sets: the weight below and above each node, against the sets themselves."""

import networkx as nx
import pytest
from random_graphs import layered, workload

from dni_fx.partition.downsets import Closures


@pytest.mark.parametrize("seed", range(10))
def test_weights_below_and_above(seed: int) -> None:
    work = workload(layered(12, 3, seed))
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(len(work.weight)))
    graph.add_edges_from((source, node) for node, sources in enumerate(work.before) for source in sources)
    closures = Closures.of(work)
    for node in graph:
        assert closures.below[node] == pytest.approx(sum(work.weight[i] for i in {node, *nx.ancestors(graph, node)}))
        assert closures.above[node] == pytest.approx(sum(work.weight[i] for i in {node, *nx.descendants(graph, node)}))
