"""Which units of an exit the segment above starts with."""

from flows import add
from networkx import DiGraph

from dni_fx.partition.exits import find_route
from dni_fx.partition.positions import find_positions
from dni_fx.partition.units import units_above


def flow_of(*edges: tuple[str, tuple[str, ...], dict[str, object]]) -> "DiGraph[str]":
    flow: DiGraph[str] = DiGraph(largest=0)
    for number, (name, sources, more) in enumerate(edges):
        made = {"forward": 1.0, "bytes": 8, "parameters": 1, "kind": "t", "storages": {number}, "owns": {number: 8}}
        usual = {**made, "carries_gradient": True, "can_have_synthesizer": True, "is_layer": not name.startswith("s")}
        add(flow, name, sources, **(usual | more))
    return flow


def residual(**changed: dict[str, object]) -> "DiGraph[str]":
    """x, three residual branches of two layers, and a head."""
    rows = [("x", ()), ("a0", ("x",)), ("b0", ("a0",)), ("s0", ("x", "b0"))]
    rows += [("a1", ("s0",)), ("b1", ("a1",)), ("s1", ("s0", "b1"))]
    rows += [("a2", ("s1",)), ("b2", ("a2",)), ("s2", ("s1", "b2")), ("head", ("s2",)), ("output", ("head",))]
    kinds = {"a": "in", "b": "out", "s": "sum"}
    changed["output"] = {"parameters": 0, "is_layer": False}
    more = {n: {"kind": kinds.get(n[0], n), "is_sum": n[0] == "s", **changed.get(n, {})} for n, _ in rows}
    return flow_of(*[(name, sources, more[name]) for name, sources in rows])


def above(flow: "DiGraph[str]", after: str, units: int | None = 1) -> tuple[str, ...]:
    positions = {p.after: p for p in find_positions(flow)}
    route = find_route(flow, positions[after], ["head"], units)
    assert route is not None
    alone = {p.crossing[0]: p for p in reversed(positions.values()) if len(p.crossing) == 1 and not p.obstacle}
    return units_above(flow, positions[after], route, alone)


def test_the_next_branch() -> None:
    assert above(residual(), "s0") == ("a1", "b1", "s1")
    assert above(residual(), "x", 2) == ("a0", "b0", "s0", "a1", "b1", "s1")


def test_no_units() -> None:
    assert above(residual(), "s0", 0) == ()
    assert above(residual(), "s0", None) == ()


def test_a_write_to_the_tensor_at_the_cut() -> None:
    flow = residual(s1={"mutates": frozenset({3}), "storages": {3}, "owns": {}})
    assert above(flow, "s0") == () and above(flow, "x") == ("a0", "b0", "s0")


def test_a_unit_that_is_not_the_next() -> None:
    """Attention mixes positions: it is the unit, and the branch before is left out."""
    assert above(residual(a2={"mixes": True}), "s0") == ()
    assert above(residual(a2={"mixes": True}), "s1") == ("a2", "b2", "s2")


def test_a_second_value_that_goes_on() -> None:
    """The head reads the tensor at the cut, too."""
    flow = residual()
    flow.add_edge("s0", "head")
    assert above(flow, "s0") == ()
