"""The lines of a graph: the place of each, and the variable that it assigns to."""

import torch
from nets import ResNet
from torch import nn

import dni_fx
from dni_fx.capture import capture
from dni_fx.model.inputs import to_inputs
from dni_fx.report.graph_lines import lines_of, variable

X = torch.rand(4, 6)


def test_variables() -> None:
    assert variable("add_1 = a + b") == "add_1"
    assert variable("call = self.call(x)") == "call"
    assert variable("call blocks.0.a (Linear)") == "call blocks.0.a"


def test_the_lines_of_a_capture_have_no_place() -> None:
    for frontend in ("fx", "modules"):
        found = lines_of(capture(ResNet(), to_inputs((X,), None), frontend).module)
        assert len(found) > 5 and {line.place for line in found} == {""} and {line.kind for line in found} == {"same"}


def test_units_that_run_once_belong_to_their_cut() -> None:
    layers = [layer for _ in range(4) for layer in (nn.Linear(6, 6), nn.Tanh())]
    net = dni_fx.transform(nn.Sequential(*layers), X, cuts=2, loss="cross_entropy")
    assert net.dni.plan.cuts[0].exit is not None and net.dni.plan.cuts[0].exit.unit is not None
    assert {line.place for line in lines_of(net)} == {"", "segment 0", "cut 0", "segment 1"}


def test_pieces_that_are_computed_again_belong_to_their_segment() -> None:
    layers = [layer for _ in range(8) for layer in (nn.Linear(6, 6), nn.Tanh())]
    net = dni_fx.transform(nn.Sequential(*layers), torch.rand(512, 6), cuts=2, inside="checkpoint")
    pieces = {line.place for line in lines_of(net) if "piece" in line.text}
    assert pieces and all(place.startswith("segment") for place in pieces)
