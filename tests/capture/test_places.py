"""The line of the person's code that each node is from."""

import pytest
import torch
from torch import Tensor, nn

from dni_fx.graph.record import record_of
from dni_fx.model.inputs import to_inputs
from dni_fx.planning import Request, capture_and_plan


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)  # the layers inside are torch's own code
        return self.head(h)


@pytest.mark.parametrize("frontend", ["fx", "export", "modules"])
def test_each_front_end_gives_the_line(frontend: str) -> None:
    module, _ = capture_and_plan(Two(), to_inputs(torch.rand(3, 4), None), Request(2, frontend=frontend))
    lines = [record_of(node).line for node in module.graph.nodes]
    first = Two.forward.__code__.co_firstlineno
    texts = [text for _, text in lines if text]
    assert set(texts) == {"h = self.body(x)  # the layers inside are torch's own code", "return self.head(h)"}
    assert texts[-1] == "return self.head(h)"
    assert {place for place, _ in lines if place} == {f"test_places.py:{first + 1}", f"test_places.py:{first + 2}"}
