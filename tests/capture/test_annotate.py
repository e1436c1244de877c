"""What a node costs, as the annotator writes it down: against autograd and torch's counter in a real step."""

from typing import Any

import pytest
import torch
from nets import CASES, IDS
from torch import Tensor, nn

from dni_fx.capture.frontends import capture
from dni_fx.graph.counters import Saving
from dni_fx.graph.record import record_of
from dni_fx.model.inputs import to_inputs
from dni_fx.planning import Request, capture_and_plan


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0])


def encoder() -> nn.Module:
    return nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), nn.Linear(16, 3))


def convolutions() -> nn.Module:
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Dropout(0.1))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 9, 4))


NETS: list[tuple[Any, tuple[int, ...]]] = [(Lstm, (4, 5, 8)), (encoder, (4, 6, 16)), (convolutions, (4, 3, 8, 8))]


def kept(model: nn.Module, *args: Any) -> int:
    """Bytes that autograd keeps of a real forward pass."""
    saving = Saving([*model.parameters(), *model.buffers(), *[a for a in args if isinstance(a, Tensor)]])
    with saving:
        held = model.train()(*args)
    assert held is not None
    return sum(saving.take().values())


@pytest.mark.parametrize("frontend", ["fx", "modules"])
@pytest.mark.parametrize(("make", "shape"), NETS, ids=["lstm", "encoder", "convolutions"])
def test_what_autograd_keeps_is_known(make: Any, shape: tuple[int, ...], frontend: str) -> None:
    """Masks, indices, statistics and workspaces too, under fake tensors that have none of them."""
    x = torch.rand(shape)
    graph = capture(make(), to_inputs(x, None), frontend).module.graph
    assert sum(size for node in graph.nodes for size in record_of(node).saves.values()) == kept(make(), x)


@pytest.mark.parametrize(("_name", "make", "args", "cuts"), CASES, ids=IDS)
def test_every_case_is_known_to_a_twentieth(_name: str, make: Any, args: Any, cuts: Any) -> None:
    module, _ = capture_and_plan(make(), to_inputs(args, None), Request(cuts))
    known = sum(size for node in module.graph.nodes for size in record_of(node).saves.values())
    assert known == pytest.approx(kept(make(), *args), rel=0.05)


def test_backward_flops() -> None:
    """One product for each operand that gets a gradient: none for the input; five for fused attention's two."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            h = self.second(self.first(x))
            return nn.functional.scaled_dot_product_attention(h, h, h) + h

    module = capture(Net(), to_inputs(torch.rand(2, 3, 4), None), "fx").module
    records = {node.name: record_of(node) for node in module.graph.nodes}
    assert records["first"].backward_flops == records["first"].flops == 2 * 6 * 4 * 8
    assert records["second"].backward_flops == 2 * records["second"].flops == 4 * 6 * 8 * 8
    attention = records["scaled_dot_product_attention"]
    assert attention.backward_flops == 2.5 * attention.flops > 0


def test_recurrent_layers_have_flops() -> None:
    module = capture(Lstm(), to_inputs(torch.rand(4, 5, 8), None), "fx").module
    lstm = next(record_of(node) for node in module.graph.nodes if node.name == "lstm")
    assert lstm.flops == 2 * 4 * 5 * (4 * 16 * 8 + 4 * 16 * 16)
    assert lstm.backward_flops == 2 * lstm.flops
