"""Every node gets the number of its segment."""

from small_graphs import lines, records, three_nodes

from dni_fx.passes.mark_segments import MarkSegments


def test_a_segment_ends_with_the_named_node() -> None:
    module = three_nodes()
    before = lines(module)
    MarkSegments(["h", "r"])(module)
    assert records(module, "segment") == {"x": 0, "h": 0, "r": 1, "y": 2, "output": 2}
    assert lines(module) == before


def test_without_cuts_there_is_one_segment() -> None:
    module = three_nodes()
    MarkSegments([])(module)
    assert set(records(module, "segment").values()) == {0}
