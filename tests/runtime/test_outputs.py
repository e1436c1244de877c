"""The result of a graph: its structure, and the values in it."""

import torch
from torch import Tensor, nn

from dni_fx.capture.frontends import capture
from dni_fx.model.inputs import to_inputs
from dni_fx.runtime.outputs import ReturnedIndex, ReturnedValue, result_of_graph


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor | int]]:
        y = self.b(torch.tanh(self.a(x)))
        return y, {"three": 3, "largest": y.argmax(1)}


def test_structure_and_values() -> None:
    """A number that the model returns is no index of a value."""
    structure, values = result_of_graph(capture(Several(), to_inputs(torch.rand(4, 6), None)).module.graph)
    assert structure == (0, {"three": 3, "largest": 1})
    assert isinstance(structure[0], ReturnedIndex) and not isinstance(structure[1]["three"], ReturnedIndex)
    assert values == [ReturnedValue((4, 2), True), ReturnedValue((4,), False)]
