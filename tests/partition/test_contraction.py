"""Contraction: weightless nodes join a neighbour or float, and every node comes back in a segment."""

from dni_fx.partition.contraction import Contraction

CHAIN = {0: [1], 1: [2], 2: [3]}


def test_a_weightless_node_joins_its_neighbour() -> None:
    contraction = Contraction([[0], [1], [2], [3]], [1.0, 0.0, 1.0, 1.0], CHAIN, [1.0] * 4)
    assert contraction.workload.weight.tolist() == [1.0, 1.0, 1.0]
    assert contraction.segments([0, 1, 1], 2) in ([[0, 1], [2, 3]], [[0], [1, 2, 3]])


def test_a_weightless_source_lies_where_it_is_first_used() -> None:
    """One that several groups use is no node of the workload."""
    contraction = Contraction([[0], [1], [2]], [0.0, 1.0, 1.0], {0: [1, 2], 1: [2]}, [2.0, 1.0, 1.0])
    assert len(contraction.workload.weight) == 2
    assert contraction.segments([0, 1], 2) == [[0, 1], [2]]


def test_groups_are_one_node() -> None:
    contraction = Contraction([[0], [1, 2], [3]], [1.0, 2.0, 4.0, 8.0], CHAIN, [1.0] * 4)
    assert contraction.workload.weight.tolist() == [1.0, 6.0, 8.0]
    assert contraction.workload.before == ((), (0,), (1,))
    assert contraction.segments([0, 0, 1], 2) == [[0, 1, 2], [3]]
