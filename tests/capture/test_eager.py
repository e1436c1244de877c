"""How often forward runs, whose error is reported, and buffers that forward resizes."""

import re
from pathlib import Path

import pytest
import torch
from nets import Stack
from oracle import failures
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize, HistogramObserver, MinMaxObserver, PerChannelMinMaxObserver
from torch.ao.quantization.observer import ObserverBase

import dni_fx
from dni_fx.errors import DniFxError

X = torch.rand(4, 6)
MODELS = Path(__file__).parents[2] / "docs" / "models.md"


class Counted(Stack):
    runs = 0

    def forward(self, x: Tensor) -> Tensor:
        type(self).runs += 1
        return super().forward(x)


class CountedBranch(Counted):
    def middle(self, h: Tensor) -> Tensor:
        return h * 2 if h.sum() > 0 else h


class CountedNoGrad(Counted):
    def middle(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            shift = self.b(h)
        return h + shift


def runs(model: Counted, frontend: str, *, verify: bool = True) -> int:
    type(model).runs = 0
    dni_fx.transform(model, X, cuts=2, frontend=frontend, verify=verify)
    return type(model).runs


COUNTS: list[tuple[str, type[Counted], str]] = [
    ("`fx`", Counted, "fx"),
    ("`export`", Counted, "export"),
    ("`modules`", Counted, "modules"),
    ("`auto`, takes `fx`", Counted, "auto"),
    ("`auto`, takes `export` after `fx`", CountedNoGrad, "auto"),
    ("`auto`, takes `modules` after both", CountedBranch, "auto"),
]


@pytest.mark.parametrize(("row", "make", "frontend"), COUNTS, ids=[c[0] for c in COUNTS])
def test_the_docs_say_how_often_forward_runs(row: str, make: type[Counted], frontend: str) -> None:
    line = next(line for line in MODELS.read_text().splitlines() if re.match(rf"\| {row} \| \d", line))
    stated = [int(number) for number in re.findall(r"\| (\d+) ", line)]
    counted = [runs(make(), frontend)]
    if len(stated) == 2:
        counted.append(runs(make(), frontend, verify=False))
    assert stated == counted


class Raises(Stack):
    def middle(self, h: Tensor) -> Tensor:
        raise ValueError("no such thing")


def test_the_error_of_forward_has_its_line() -> None:
    with pytest.raises(DniFxError, match=r"does not run .*test_eager\.py:\d+: 'raise ValueError.*: no such thing"):
        dni_fx.transform(Raises(), X)


class TrainOnly(Stack):
    def middle(self, h: Tensor) -> Tensor:
        if not vars(self)["training"]:
            raise NotImplementedError
        return h


def test_a_model_that_has_no_eval_mode_is_taken() -> None:
    assert dni_fx.transform(TrainOnly(), X, cuts=2).dni.plan.frontend == "fx"


class Observed(Stack):
    """Some observers resize their buffers in forward."""

    def __init__(self, observer: nn.Module) -> None:
        super().__init__()
        self.observer = observer

    def middle(self, h: Tensor) -> Tensor:
        return self.observer(h)


def fake_quantize() -> FakeQuantize:
    scheme = {"dtype": torch.qint8, "qscheme": torch.per_channel_symmetric, "ch_axis": 1}
    return FakeQuantize(PerChannelMinMaxObserver, quant_min=-128, quant_max=127, **scheme)


def observers() -> list[ObserverBase | FakeQuantize]:
    return [MinMaxObserver(), PerChannelMinMaxObserver(ch_axis=1), HistogramObserver(bins=8), fake_quantize()]


@pytest.mark.parametrize("index", range(4), ids=[type(o).__name__ for o in observers()])
def test_buffers_that_forward_resizes_are_restored(index: int) -> None:
    model = Observed(observers()[index])
    before = [(name, id(b), b.clone()) for name, b in model.named_buffers()]
    net = dni_fx.transform(model, X, cuts=2)
    assert net.dni.plan.frontend == "fx"
    assert failures(net, X, {}) == {}
    for (name, number, value), (_, buffer) in zip(before, model.named_buffers(), strict=True):
        assert id(buffer) == number, name
        torch.testing.assert_close(buffer, value, rtol=0, atol=0, msg=name)
    assert all(p.grad is None for p in model.parameters())


def test_export_refuses_a_buffer_that_forward_resizes() -> None:
    with pytest.raises(DniFxError, match=r"changes the shape of the buffer 'observer\.min_val'"):
        dni_fx.transform(Observed(PerChannelMinMaxObserver(ch_axis=1)), X, frontend="export")


class Replaces(Stack):
    last: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(1, 6))

    def middle(self, h: Tensor) -> Tensor:
        self.last = torch.cat([self.last, h.detach()[:1]])[-3:]
        return h + self.last.mean(0)


def test_a_buffer_that_is_replaced_by_one_of_another_shape() -> None:
    model = Replaces()
    before = model.last
    net = dni_fx.transform(model, X, cuts=2)
    assert net.dni.plan.frontend == "modules"
    assert model.last is before and before.shape == (1, 6) and not before.any()
    net(X), net(X)
    assert model.last.shape == (3, 6)


class Conditional(Stack):
    def middle(self, h: Tensor) -> Tensor:
        return torch.cond(h.sum() > 0, torch.sin, torch.cos, (h,))  # type: ignore[no-any-return]


def test_an_operator_that_does_not_run_while_watched() -> None:
    assert dni_fx.transform(Conditional(), X, cuts=2).dni.plan.frontend == "export"


def test_keyword_arguments_that_are_given_as_the_one_argument() -> None:
    with pytest.raises(DniFxError, match=r"The example is one dict: give keyword arguments as example_kwargs$"):
        dni_fx.plan(Stack(), {"x": X})
    with pytest.raises(DniFxError, match=r"does not run on the example inputs(?!.*example_kwargs)"):
        dni_fx.plan(Stack(), {"y": X})
