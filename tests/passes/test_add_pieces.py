"""Both ends of a piece: what the begin takes, where both stand, and how they are removed."""

from typing import Any

import torch
from small_graphs import SmallGraph, lines
from torch import nn

from dni_fx.graph import record_of
from dni_fx.passes.add_pieces import AddPieces
from dni_fx.passes.remove_dni import RemoveDni


def chain() -> Any:
    """x -> a -> m -> b -> y, where m takes the parameter w, b a mask, and y also takes a."""
    small = SmallGraph(first=nn.Linear(3, 4), second=nn.Linear(4, 4))
    small.root.register_parameter("w", nn.Parameter(torch.ones(4)))
    small.dni.add_module("pieces", nn.Module())
    x, mask = small.input("x", segment=0), small.input("mask", segment=0)
    a = small.module("first", x, name="a", segment=0)
    w = small.attribute("w", segment=0)
    m = small.call(torch.mul, a, w, name="m", segment=0)
    b = small.call(torch.mul, small.module("second", m, name="s", segment=0), mask, name="b", segment=0)
    return small.give(small.call(torch.add, b, a, name="y", segment=0), segment=0)


def added(module: Any, *pieces: tuple[str, str]) -> list[str]:
    """The lines of the whole graph, after a check that `RemoveDni` removes what the pass has added."""
    before = lines(module)
    AddPieces(pieces)(module)
    module.graph.lint()
    found = lines(module)
    RemoveDni()(module)
    assert lines(module) == before
    return found


def test_a_piece_takes_values_parameters_and_modules() -> None:
    found = added(chain(), ("m", "b"))
    place = found.index("m = mul(a, w)")
    assert found[place - 4 : place] == [
        "borrowed_w = w",
        "dni_pieces = dni.pieces",
        "borrowed_second = second",
        "begin_piece = begin_piece(dni_pieces, 0, (a, mask), (borrowed_w, borrowed_second))",
    ]
    assert found[found.index("b = mul(s, mask)") + 1] == "end_piece = end_piece(begin_piece)"


def test_a_piece_is_from_call_to_call() -> None:
    """Inputs and attributes at its ends are in no piece; of these alone there is none."""
    found = added(chain(), ("x", "w"))
    assert found[found.index("a = first(x)") + 1].startswith("end_piece")
    assert added(chain(), ("x", "mask"), ("w", "w")) == lines(chain())


def test_a_node_that_the_rewrite_added_divides_a_piece() -> None:
    module = chain()
    node = next(node for node in module.graph.nodes if node.name == "s")
    record_of(node).role = "boundary"
    AddPieces([("a", "y")])(module)
    found = lines(module)
    assert [line.split(" = ")[0] for line in found if "_piece(" in line] == [
        "begin_piece",
        "end_piece",
        "begin_piece_1",
        "end_piece_1",
    ]
    assert found.index("end_piece = end_piece(begin_piece)") < found.index(f"{node} = second(m)")
    assert "begin_piece_1 = begin_piece(dni_pieces_1, 1, (s, mask, a), ())" in found
