"""Crossings whose tensors are not batch first: the same training, labels for samples, other ranks and sizes."""

from typing import Any

import pytest
import torch
from layouts import CASES, FRONTENDS, SLOW, Flattened, Prototypes, TimeFirst, Views, sequences
from made import wake
from torch import Tensor, nn

import dni_fx
from dni_fx import ops
from dni_fx.errors import ContextError
from dni_fx.plans import Plan
from dni_fx.synthesizers import Activation, Synthesizer

pytestmark = pytest.mark.slow

UNLOCKS = ["none", "backward"]
LABELS = torch.arange(6) % 3


class Layers(nn.Module):
    """Layers on sequences (N, T, 5), whose tensors at the cut are laid out in one of several ways."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layout = layout
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.positions = nn.Parameter(torch.randn(7, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.positions
        if self.layout == "time first":
            x = x.transpose(0, 1)
        elif self.layout == "flattened":
            x = x.reshape(-1, 5)
        elif self.layout == "batch last":
            x = x.permute(1, 2, 0)
        h = torch.tanh(self._each(self.b, torch.tanh(self._each(self.a, x))))
        if self.layout == "time first":
            h = h.transpose(0, 1)
        elif self.layout == "flattened":
            h = h.reshape(-1, 7, 8)
        elif self.layout == "batch last":
            h = h.permute(2, 0, 1)
        return self.c(h)

    def _each(self, layer: nn.Linear, x: Tensor) -> Tensor:
        if self.layout != "batch last":
            return layer(x)
        return torch.einsum("tfn,gf->tgn", x, layer.weight) + layer.bias[:, None]


def trained(layout: str, **options: Any) -> dict[str, Tensor]:
    """The parameters after a few steps, by name but for the name of the crossing."""
    x = sequences()
    net = dni_fx.transform(Layers(layout), x, cuts=["b"] if layout != "batch last" else ["add_2"], **options)
    optimizer = torch.optim.Adam(net.parameters(), 0.03)
    context = {"dni_context": LABELS} if options.get("classes") else {}
    torch.manual_seed(2)
    for _ in range(4):
        optimizer.zero_grad()
        net(torch.randn(6, 7, 5), **context).square().mean().backward()
        optimizer.step()
    assert all(one["steps"] == 4 and one["target_norm"] > 0 for one in net.dni.metrics().values())
    return {name.split("synthesizer")[-1]: p.detach() for name, p in net.named_parameters()}


def assert_alike(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("unlock", UNLOCKS)
@pytest.mark.parametrize("layout", ["time first", "batch last", "flattened"])
def test_the_layout_does_not_change_the_training(layout: str, unlock: str) -> None:
    assert_alike(trained("batch first", unlock=unlock), trained(layout, unlock=unlock))


@pytest.mark.parametrize("frontend", ["fx", "modules"])
@pytest.mark.parametrize("options", [{"classes": 3}, {"training": dni_fx.Training(clip=0.01)}])
def test_labels_and_clipping_follow_the_batch(options: dict[str, Any], frontend: str) -> None:
    options = options | {"frontend": frontend}
    assert_alike(trained("batch first", **options), trained("time first", **options))


def test_a_head_that_differentiates_a_loss_sees_the_batch_first() -> None:
    options = {"classes": 3, "loss": "cross_entropy", "synthesizer": "guided_head(hidden_size=4)"}
    assert_alike(trained("batch first", **options), trained("time first", **options))


def woken(model: nn.Module, inputs: Any, **options: Any) -> Any:
    net = dni_fx.transform(model, inputs, **options)
    for synthesizer in net.dni.synthesizers.values():
        wake(synthesizer)
    return net


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("length", [pytest.param(7, marks=SLOW), 6])
def test_labels_go_to_samples_where_time_is_first(frontend: str, length: int) -> None:
    """With T = N the sizes alone do not tell the two apart."""
    net = woken(TimeFirst(), sequences(6, length), cuts=["a"], classes=3, frontend=frontend)
    (crossing,) = net.dni.crossings.values()
    prediction = crossing(torch.zeros(length, 6, 8), LABELS)
    assert prediction.shape == (length, 6, 8)
    assert torch.equal(prediction[0], prediction[1])  # the same for all time steps
    assert torch.allclose(prediction[:, 0], prediction[:, 3])  # of one label
    assert not torch.allclose(prediction[:, 0], prediction[:, 1])
    assert dni_fx.check(net, sequences(6, length))


@pytest.mark.parametrize("kind", ["labels", "one-hot", "of positions"])
def test_every_form_of_labels(kind: str) -> None:
    net = woken(TimeFirst(), sequences(6, 6), cuts=["a"], classes=3)
    (crossing,) = net.dni.crossings.values()
    one_hot = nn.functional.one_hot(LABELS, 3).float()
    labels = {"labels": LABELS, "one-hot": one_hot, "of positions": LABELS[:, None].expand(6, 6)}[kind]
    prediction = crossing(torch.zeros(6, 6, 8), labels)
    assert torch.equal(prediction, crossing(torch.zeros(6, 6, 8), LABELS))
    assert torch.equal(prediction[0], prediction[1]) and not torch.allclose(prediction[:, 0], prediction[:, 1])
    assert torch.equal(net.train()(sequences(6, 6), dni_context=labels).isfinite(), torch.ones(6, 3, dtype=torch.bool))


@pytest.mark.filterwarnings("ignore:.*rows are not sample by sample")  # of two views; tests/capture/test_order.py
@pytest.mark.parametrize("make", [lambda: Flattened(7), lambda: Views()])
def test_several_rows_a_sample_take_a_label_each(make: Any) -> None:
    model = make()
    inputs = (sequences(),) if isinstance(model, Flattened) else (torch.randn(6, 5), torch.randn(6, 5))
    rows = 42 if isinstance(model, Flattened) else 12
    net = woken(model, inputs, classes=3, cuts=["b"])
    with pytest.raises(ContextError, match=f"has 6 rows, but the tensor at the cut has {rows}.*cut elsewhere"):
        net(*inputs, dni_context=LABELS)
    net(*inputs, dni_context=torch.arange(rows) % 3).square().mean().backward()
    assert dni_fx.check(net, inputs)


@pytest.mark.parametrize("unlock", UNLOCKS)
def test_a_tensor_without_a_batch_axis_takes_no_labels(unlock: str) -> None:
    """It has as many rows as the batch, by chance; no label belongs to one of them."""
    x = torch.randn(4, 5)
    net = woken(Prototypes(), x, classes=3, cuts=["tanh_2"], unlock=unlock)
    (name,) = [t.node for t in net.dni.plan.cuts[0].tensors if t.batch is None]
    crossing = net.dni.crossings[f"cut0_{name}"]
    h = torch.randn(4, 8)
    assert torch.equal(crossing(h, torch.tensor([0, 1, 2, 0])), crossing(h, torch.tensor([1, 1, 1, 1])))
    net(x, dni_context=torch.tensor([0, 1, 2, 0])).square().mean().backward()
    assert dni_fx.check(net, x)


@pytest.mark.parametrize("frontend", ["fx", pytest.param("export", marks=SLOW)])
@pytest.mark.parametrize(
    "name", ["divergence", *(pytest.param(n, marks=SLOW) for n in ("time first", "views", "pixels", "attending"))]
)
def test_a_smaller_last_batch_trains(name: str, frontend: str) -> None:
    case = CASES[name]
    net = dni_fx.transform(case.make(), case.inputs, cuts=2, frontend=frontend)
    for rows in (len(case.inputs[0]), 1):
        outputs = net(*(t[:rows] for t in case.inputs))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        sum(o.square().mean() for o in outputs).backward()


class Ranks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(torch.tanh(self.b(torch.tanh(self.a(x)))))


@pytest.mark.parametrize("unlock", UNLOCKS)
@pytest.mark.parametrize("synthesizer", ["linear", "mlp", "least_squares"])
def test_a_call_may_have_more_axes_or_no_batch_axis(synthesizer: str, unlock: str) -> None:
    """The features stay on the last axis, and a call without a batch axis is one sample."""
    net = woken(Ranks(), torch.randn(6, 12), cuts=["b"], unlock=unlock, synthesizer=synthesizer)
    (crossing,) = net.dni.crossings.values()
    wide = torch.randn(2, 3, 8)
    for h in (wide, wide[0, 0]):
        assert crossing(h).shape == h.shape
    assert torch.allclose(crossing(wide[0, 0]), crossing(wide[:1, 0])[0])
    assert torch.allclose(crossing(wide) * 2, crossing(wide.flatten(0, 1)).view(2, 3, 8) * 6)  # of 2 and of 6 samples
    for shape in ((2, 3, 12), (12,)):
        net.zero_grad()
        output = net(torch.randn(shape))
        assert output.shape == (*shape[:-1], 4)
        output.square().mean().backward()
        assert all(p.grad is not None for p in net.parameters() if synthesizer != "least_squares" or p.dim())


@pytest.mark.parametrize("unlock", UNLOCKS)
def test_one_sample_trains_as_a_batch_of_one(unlock: str) -> None:
    def gradients(x: Tensor, label: Tensor) -> dict[str, Tensor]:
        torch.manual_seed(3)
        net = woken(Ranks(), torch.randn(6, 12), cuts=["b"], classes=3, unlock=unlock)
        net(x, dni_context=label).square().mean().backward()
        return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}

    x = torch.randn(12)
    assert_alike(gradients(x[None], torch.tensor([2])), gradients(x, torch.tensor(2)))


class Recorded(Synthesizer):
    """Keeps the activation that it was made for, and the shapes that it gets."""

    def __init__(self, activation: Activation, context_size: int = 0) -> None:
        super().__init__(activation, context_size)
        self.activation, self.shapes = activation, []
        self.weight = nn.Parameter(torch.zeros(self.features))

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
        self.shapes.append((tuple(activation.shape), None if context is None else tuple(context.shape)))
        return activation * self.weight.expand_as(activation.movedim(self.axis, -1)).movedim(-1, self.axis)


@pytest.mark.filterwarnings("ignore:.*rows are not sample by sample")  # of two views; tests/capture/test_order.py
@pytest.mark.parametrize(
    ("name", "cut", "shape", "axis", "rows"),
    [
        ("time first", "a", (6, 7, 8), -1, 1),
        ("moved", "einsum", (6, 8, 7), 1, 1),
        ("pixels", "conv", (2, 8, 4, 4), 1, 1),
        ("views", "b", (12, 8), -1, 2),
        ("flattened", "b", (42, 8), -1, 0),
        ("prototypes", "p", (1, 4, 8), -1, 1),
    ],
)
def test_an_own_synthesizer_gets_the_batch_first(
    name: str, cut: str, shape: tuple[int, ...], axis: int, rows: int
) -> None:
    case = CASES[name]
    net = dni_fx.transform(case.make(), case.inputs, cuts=[cut], synthesizer=Recorded, context_size=3)
    one: Any = list(net.dni.synthesizers.values())[-1]
    assert (one.activation.shape, one.activation.axis, one.activation.rows) == (shape, axis, rows)
    context = torch.randn(shape[0] if rows != 1 else len(case.inputs[0]), 3)
    net(*case.inputs, dni_context=context).square().mean().backward()
    wanted = list(shape)
    wanted[axis] = 3
    assert one.shapes == [(shape, None if name == "prototypes" else tuple(wanted))]


def test_an_older_plan_and_an_older_pickle_are_batch_first() -> None:
    plan = dni_fx.plan(TimeFirst(), sequences(), cuts=2)
    text = plan.to_json()
    assert '"batch": 1' in text
    older = Plan.from_json(text.replace('"batch": 1,', "").replace('"rows": 1', '"axis": -1'))
    assert (older.cuts[0].tensors[0].batch, older.cuts[0].tensors[0].rows) == (0, 1)
    assert ops.Segment().layout(0) == ops.Layout()
