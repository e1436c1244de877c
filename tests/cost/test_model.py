"""What a node costs, as the annotator writes it down: against what autograd and torch's counter say of a real step."""

from typing import Any

import pytest
import torch
from nets import CASES, IDS
from torch import Tensor, nn

import dni_fx
from dni_fx.capture.frontends import capture
from dni_fx.compiler import Request, capture_and_plan
from dni_fx.cost.memory import resident
from dni_fx.cost.synthesizers import Price, _price
from dni_fx.cost.times import node_times
from dni_fx.graph.counters import Saving
from dni_fx.graph.record import record_of
from dni_fx.model.inputs import given
from dni_fx.settings import Settings
from dni_fx.synthesizers.base import Activation, Synthesizer
from dni_fx.synthesizers.feedforward import Conv, Linear


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
    graph = capture(make(), given(x, None), frontend).module.graph
    assert sum(size for node in graph.nodes for size in record_of(node).saves.values()) == kept(make(), x)


@pytest.mark.parametrize(("_name", "make", "args", "cuts"), CASES, ids=IDS)
def test_every_case_is_known_to_a_twentieth(_name: str, make: Any, args: Any, cuts: Any) -> None:
    module, _ = capture_and_plan(make(), given(args, None), Request(cuts))
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

    module = capture(Net(), given(torch.rand(2, 3, 4), None), "fx").module
    records = {node.name: record_of(node) for node in module.graph.nodes}
    assert records["first"].backward_flops == records["first"].flops == 2 * 6 * 4 * 8
    assert records["second"].backward_flops == 2 * records["second"].flops == 4 * 6 * 8 * 8
    attention = records["scaled_dot_product_attention"]
    assert attention.backward_flops == 2.5 * attention.flops > 0


def test_recurrent_layers_have_flops() -> None:
    module = capture(Lstm(), given(torch.rand(4, 5, 8), None), "fx").module
    lstm = next(record_of(node) for node in module.graph.nodes if node.name == "lstm")
    assert lstm.flops == 2 * 4 * 5 * (4 * 16 * 8 + 4 * 16 * 16)
    assert lstm.backward_flops == 2 * lstm.flops


def test_resident_bytes() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    model[0].bias.requires_grad_(False)
    example = given(torch.rand(3, 4), None)
    trainable, frozen, buffers = 4 * 8 + 16, 8, 16
    assert resident(model, example, 2) == 4 * (3 * trainable + frozen + buffers + 12) + 8  # a step count


# -------------------------------------------------------------------------------------------- synthesizers
def price(activation: Activation, factory: Any, context_size: int = 0) -> Price:
    found = _price(activation, factory, Settings(context_size=context_size or None))
    assert isinstance(found, Price)
    return found


def test_prices() -> None:
    meta_device = torch.device("meta")
    linear = price(Activation((4, 5, 8), torch.float32, meta_device, 2), Linear)
    assert linear.parameter_bytes == 4 * (8 * 8 + 8)
    assert linear.time == 2 * (2 * 20 * 8 * 8)  # forward, and the weight's gradient: the activation is detached
    assert (linear.bytes, linear.kept) == (4 * 160, 0)
    labels = price(Activation((4, 5, 8), torch.float32, meta_device, 2), Linear, 3)
    assert labels.parameter_bytes == 4 * (11 * 8 + 8)
    assert labels.kept == 4 * 20 * 11  # the activation with the labels beside it
    conv = price(Activation((4, 8, 6, 6), torch.float16, meta_device, 1), Conv)
    assert conv.parameter_bytes == 2 * (8 * 8 * 9 + 8)
    assert conv.time == 2 * (2 * 4 * 36 * 9 * 8 * 8)


def test_what_cannot_be_has_a_reason() -> None:
    reason = _price(Activation((4, 8), torch.float32, torch.device("meta"), 1), Conv, Settings())
    assert isinstance(reason, str) and "a conv synthesizer needs a map" in reason


class Wrong(Synthesizer):
    def __init__(self, activation: Activation, context_size: int = 0) -> None:
        super().__init__(activation, context_size)
        self.net = nn.Linear(3, 3)

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
        return self.net(activation)


class Narrow(Wrong):
    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
        return activation[:, :3]


def test_a_synthesizer_of_the_wrong_shape_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(dni_fx.DniFxError, match=r"Narrow returned \[3, 3\] for an activation of shape \[3, 8\]"):
        dni_fx.plan(model, torch.rand(3, 4), synthesizer=Narrow)


@pytest.mark.parametrize("cuts", ["auto", "1"])
def test_a_synthesizer_that_does_not_run_is_named(cuts: str) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(dni_fx.DniFxError, match=r"synthesizer Wrong does not run on a tensor of shape \[3, 8\]: mat1"):
        dni_fx.plan(model, torch.rand(3, 4), synthesizer=Wrong, cuts=cuts)


def test_a_synthesizer_that_looks_at_values_is_run_on_zeros() -> None:
    class Looks(Synthesizer):
        def __init__(self, activation: Activation, context_size: int = 0) -> None:
            super().__init__(activation, context_size)
            self.net = nn.Linear(self.features, self.features)

        def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
            return self.net(activation) if float(activation.sum()) < 1e9 else activation

    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x, before = torch.rand(3, 4), torch.get_rng_state()
    plan = dni_fx.plan(model, x, synthesizer=Looks)
    assert plan.segments[0].synthesizers > 0
    assert before.equal(torch.get_rng_state())


# ------------------------------------------------------------------------------------------------- profile
@pytest.mark.parametrize("frontend", ["fx", "export", "modules"])
def test_measured_times(frontend: str) -> None:
    torch.manual_seed(0)
    big, small = nn.Linear(512, 512), nn.Linear(512, 4)
    model = nn.Sequential(nn.Linear(8, 512), nn.BatchNorm1d(512), big, nn.ReLU(), small)
    state = {name: t.clone() for name, t in model.state_dict().items()}
    example = given(torch.rand(512, 8), None)
    module = capture(model, example, frontend).module
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    generator = torch.get_rng_state()
    times = node_times(module, example)
    assert set(times) == {node.name for node in module.graph.nodes}
    assert all(t >= 0 for pair in times.values() for t in pair)
    name = {"fx": "_2", "modules": "_2", "export": "linear_1"}[frontend]
    last = {"fx": "_4", "modules": "_4", "export": "linear_2"}[frontend]
    assert times[name][0] > times[last][0] and times[name][1] > times[last][1]
    assert all(t.equal(state[n]) for n, t in model.state_dict().items()), "no trace is left"
    assert generator.equal(torch.get_rng_state())
    assert all(p.grad is not None and bool((p.grad == 1).all()) for p in model.parameters())


def test_a_profiled_plan_is_in_seconds() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    plan = dni_fx.plan(model, torch.rand(3, 4), profile=True)
    assert plan.forecast is not None and plan.forecast.unit == "s"
    assert 0 < plan.forecast.backprop.step < 1
    assert dni_fx.Plan.from_json(plan.to_json()) == plan
