"""Which sums have a shortcut with layers of its own."""

import networkx as nx
from flows import Flow, add

from dni_fx.partition.exits import find_route
from dni_fx.partition.positions import find_positions
from dni_fx.partition.projections import projection_sums


def flow_of(*rows: tuple[str, tuple[str, ...]], mixes: tuple[str, ...] = ()) -> Flow:
    """Layers, and without a weight what begins with `s` (a sum) or `n` (a norm, an identity)."""
    flow: Flow = nx.DiGraph()
    for name, sources in rows:
        is_layer = name[0] not in "sn" and name not in mixes
        add(
            flow,
            name,
            sources,
            is_layer=is_layer,
            is_sum=name[0] == "s",
            mixes=name in mixes,
            forward=1.0,
            kind=name[0],
        )
    return flow


def test_an_identity_is_no_projection() -> None:
    assert not projection_sums(flow_of(("x", ()), ("a", ("x",)), ("b", ("a",)), ("s", ("x", "b"))))


def test_an_identity_behind_operations_without_weights() -> None:
    rows = [("x", ()), ("a", ("x",)), ("n0", ("x",)), ("n1", ("n0",)), ("s", ("a", "n1"))]
    assert not projection_sums(flow_of(*rows))


def test_a_projection() -> None:
    rows = [("x", ()), ("a", ("x",)), ("b", ("a",)), ("p", ("x",)), ("n", ("p",)), ("s", ("b", "n"))]
    assert projection_sums(flow_of(*rows)) == {"s"}


def test_a_norm_before_both_terms() -> None:
    """A pre-activation block: the projection takes the normalised value."""
    rows = [
        ("x", ()),
        ("n", ("x",)),
        ("a", ("n",)),
        ("p", ("n",)),
        ("s", ("a", "p")),
        ("b", ("s",)),
        ("s1", ("s", "b")),
    ]
    assert projection_sums(flow_of(*rows)) == {"s"}


def test_two_branches_on_one_value() -> None:
    """Attention and an MLP side by side: x + attention(x) + mlp(x)."""
    rows = [("x", ()), ("a", ("x",)), ("s0", ("x", "a")), ("m", ("x",)), ("s1", ("s0", "m"))]
    assert not projection_sums(flow_of(*rows))


def test_attention_is_not_passed() -> None:
    """A shortcut of attention without a weight of its own."""
    rows = [("x", ()), ("a", ("x",)), ("attention", ("x",)), ("s", ("a", "attention"))]
    assert projection_sums(flow_of(*rows, mixes=("attention",))) == {"s"}


def test_a_sum_with_another_stream() -> None:
    """A decoder adds what it reads from the encoder to its own stream: the stream is a source of the query."""
    rows = [("e", ()), ("d", ()), ("q", ("d",)), ("c", ("q", "e")), ("s", ("d", "c"))]
    assert not projection_sums(flow_of(*rows))


def test_a_sum_whose_terms_all_run() -> None:
    rows = [("x", ()), ("a", ("x",)), ("p", ("x",)), ("s", ("a", "p")), ("head", ("s",))]
    flow = flow_of(*rows)
    position = find_positions(flow)[0]
    cheap, whole = (find_route(flow, position, ["head"], 0, both=both) for both in ((), projection_sums(flow)))
    assert cheap is not None and len(cheap.nodes) == 2 and set(cheap.bypassed) == {"s"}
    assert whole is not None and whole.nodes == ("a", "p", "s", "head") and not whole.bypassed
