"""The memory model against what is really alive: measured, op by op, on small nets of every kind."""

from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from flows import add
from nets import ResNet
from torch import Tensor, nn

import dni_fx
from dni_fx.bench.live_bytes import training_peak
from dni_fx.capture.frontends import capture
from dni_fx.cost import memory
from dni_fx.cost.memory import Memory, resident
from dni_fx.graph.flow import dataflow
from dni_fx.model.inputs import to_inputs
from dni_fx.partition import set_largest_parameter

pytestmark = pytest.mark.slow


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).view(x.size(0), x.size(1), 3, 4, 8).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out(mixed)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 32))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Last(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.second, self.head = nn.LSTM(16, 32, batch_first=True), nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(x)
        return self.head(torch.relu(self.second(y)))


def convolutions() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1)]
    for _ in range(3):
        layers += [nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, padding=1)]
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 64, 4))


def perceptron() -> nn.Module:
    return nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(32, 32), nn.Dropout(0.1), nn.Tanh())])


NETS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "attention": (lambda: nn.Sequential(*[m for _ in range(3) for m in (Attention(), Residual())]), (16, 32, 32)),
    "convolutions": (convolutions, (16, 3, 16, 16)),
    "dropout": (perceptron, (256, 32)),
    "lstm": (Last, (16, 12, 16)),
    "resnet": (ResNet, (64, 6)),
}


def peak(net: nn.Module, x: Tensor) -> int:
    """Bytes that forward and backward make, at most."""

    def step() -> None:
        (net(x) * 2).sum().backward()  # one gradient of the output, which nothing holds

    for _ in range(2):
        step()
        net.zero_grad()
    return training_peak(step, net.parameters()).peak


@pytest.mark.parametrize("name", NETS)
def test_backprop_is_predicted(name: str) -> None:
    make, shape = NETS[name]
    x = torch.rand(shape)
    forecast = dni_fx.plan(make(), x, cuts=2).forecast
    assert forecast is not None
    made = forecast.backprop.peak_bytes - forecast.resident_bytes
    real = peak(make().train(), x)
    if made > forecast.optimizer_bytes:
        assert abs(made / real - 1) < 0.1
    else:
        assert real <= made * 1.1  # the optimizer's step, which is not run here, takes more


@pytest.mark.parametrize(
    "segments", [pytest.param(2, marks=pytest.mark.slow), 3, pytest.param(4, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", NETS)
def test_cut_models_are_predicted(name: str, segments: int) -> None:
    make, shape = NETS[name]
    if name == "lstm" and segments == 4:
        pytest.skip("has fewer places to cut at")
    x = torch.rand(shape)
    net = dni_fx.transform(make(), x, cuts=segments, synthesizer_share=9.0)
    predicted = max(s.peak_bytes for s in net.dni.plan.segments)
    assert abs(predicted / peak(net.train(), x) - 1) < 0.1


@pytest.mark.parametrize(
    ("name", "segments"),
    [("attention", 2), ("convolutions", 2), ("dropout", 2), pytest.param("attention", 3, marks=pytest.mark.slow)],
)
def test_activations_that_are_computed_again_are_predicted(name: str, segments: int) -> None:
    make, shape = NETS[name]
    x = torch.rand(shape)
    kept, again = (
        dni_fx.transform(make(), x, cuts=segments, synthesizer_share=9.0, verify=False, inside=inside).train()
        for inside in ("keep", "checkpoint")
    )
    assert any(segment.recomputed for segment in again.dni.plan.segments)
    real = peak(again, x)
    assert real < 0.9 * peak(kept, x)
    assert abs(max(s.peak_bytes for s in again.dni.plan.segments) / real - 1) < 0.1


def flow_of(*nodes: dict[str, Any]) -> "nx.DiGraph[str]":
    """Nodes in a row; each makes one storage of its own."""
    flow: nx.DiGraph[str] = nx.DiGraph(largest=0)
    for i, node in enumerate(nodes):
        add(flow, f"n{i}", (f"n{i - 1}",) if i else (), **({"owns": {i: 10}, "bytes": 10} | node))
    return flow


def row_of(flow: "nx.DiGraph[str]") -> float:
    nothing = np.zeros(2)
    return float(Memory(flow).segment_peaks([0, len(flow)], nothing, nothing, nothing, nothing)(0)[0])


def test_a_chain_by_hand() -> None:
    """Three nodes that keep what they make: the last one's backward pass has all three, its gradient, and the next."""
    assert row_of(flow_of(*[{"saves": {i: 10}} for i in range(3)])) == 3 * 10 + 10 + 10


def test_what_nothing_keeps_is_let_go() -> None:
    output = {"owns": {}, "storages": frozenset()}
    assert row_of(flow_of({}, {}, {}, output)) == 20  # forward: what is read and what is made; backward the same


def test_a_loss_keeps_what_it_is_given() -> None:
    """The logits of a language model may be most of its memory: they, their gradient, and what lies below."""
    output = {"owns": {}, "storages": frozenset()}
    logits = {"owns": {1: 1000}, "bytes": 1000}
    assert row_of(flow_of({"saves": {0: 10}}, logits, output)) == 10 + 1000 + 1000


def test_masks_count() -> None:
    """What autograd keeps and no output shows."""
    assert row_of(flow_of({"saves": {0: 10, 77: 5}}, {"saves": {1: 10}})) == 10 + 5 + 10 + 10 + 10


def test_gradients_of_parameters_add_up_on_the_way_back() -> None:
    flow = flow_of({"saves": {0: 10}, "gradient": 1000}, {"saves": {1: 10}, "gradient": 100})
    # When the first node goes back, all gradients are there, and its own output's.
    assert row_of(flow) == 10 + 10 + 1100


def test_the_optimizer_may_be_the_peak() -> None:
    flow = flow_of({"gradient": 1000}, {"gradient": 3000})
    set_largest_parameter(flow, 3000)
    assert row_of(flow) == 4000 + 2 * 3000


def test_memory_of_two_pieces_by_hand() -> None:
    """Four nodes of 10 bytes that keep what they make, and 30 more; the first two are a piece."""
    flow: nx.DiGraph[str] = nx.DiGraph(largest=0)
    for i in range(4):
        saves = {i: 10, 100 + i: 30}
        add(flow, f"n{i}", (f"n{i - 1}",) if i else (), owns={i: 10}, saves=saves, bytes=10)
    kept, again = Memory(flow), Memory(flow, [(1, 2)])
    assert kept.kept.tolist() == [0, 40, 80, 120, 160]
    assert again.kept.tolist() == [0, 0, 0, 40 + 10, 80 + 10]  # the output of the piece stays, for node 3
    # Node 2 goes backward: all of the piece is there again, the gradient of its output, and of its input.
    assert again.backward[2] == 80 + 10 + 10
    assert np.array_equal(kept.backward[3:] - again.backward[3:], [70, 70])


@pytest.mark.parametrize("name", NETS)
def test_loads_and_peaks_agree(name: str) -> None:
    """The search and the report count the same."""
    make, shape = NETS[name]
    module = capture(make(), to_inputs(torch.rand(shape), None)).module
    model = Memory(dataflow(module.graph))
    count = len(model.names)
    ends = [0, *range(2, count, 3), count]
    below, above, training = (np.arange(len(ends)) * k * 100.0 for k in (3, 4, 5))
    loads = model.segment_peaks(ends, below, above, training, np.zeros(len(ends)))
    for i, start in enumerate(ends[:-1]):
        for j, end in enumerate(ends[i + 1 :], i + 1):
            found = model.peak(start, end, below[i], above[j], training[i])
            assert loads(i)[j - i - 1] == pytest.approx(max(found.bytes, model.optimizer))
            assert found.node in model.names


def test_torch_is_not_needed() -> None:
    assert "torch" not in vars(memory)


def test_resident_bytes() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    model[0].bias.requires_grad_(False)
    example = to_inputs(torch.rand(3, 4), None)
    trainable, frozen, buffers = 4 * 8 + 16, 8, 16
    assert resident(model, example, 2) == 4 * (3 * trainable + frozen + buffers + 12) + 8  # a step count
