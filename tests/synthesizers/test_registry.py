"""One contract for every synthesizer that has a name."""

import pytest
import torch
from made import CPU, make, wake
from nets import two_layers
from torch import Tensor

import dni_fx
from dni_fx.errors import DniFxError
from dni_fx.synthesizers.base import Activation
from dni_fx.synthesizers.registry import REGISTRY

PLAIN = ["attention", "conv", "gru", "linear", "lstm", "mlp", "rnn"]  # with all options at their defaults

SHAPES = [
    # shape, feature axis, name
    ((5, 7), 1, "vector"),
    ((5, 3), 1, "narrow"),
    ((1, 7), 1, "one-sample"),
    ((5, 4, 7), 2, "sequence"),
    ((5, 3, 4, 7), 3, "channels-last"),
    ((5, 7, 9), 1, "map1d"),
    ((5, 7, 6, 5), 1, "map2d"),
    ((5, 7, 1, 1), 1, "map2d-of-one"),
    ((5, 3, 4, 5, 3), 1, "map3d"),
]


def _context(shape: tuple[int, ...], axis: int, size: int) -> Tensor | None:
    """What a `Crossing` passes: shaped like the activation but for the feature axis."""
    return torch.rand([size if i == axis else n for i, n in enumerate(shape)]) if size else None


FITS = {  # the shapes that a synthesizer takes: it refuses all others
    "attention": ["sequence"],
    "conv": ["map1d", "map2d", "map2d-of-one", "map3d"],
    "gru": ["vector", "narrow", "one-sample", "sequence"],
    "linear": [s[2] for s in SHAPES],
    "lstm": ["vector", "narrow", "one-sample", "sequence"],
    "mlp": [s[2] for s in SHAPES],
    "rnn": ["vector", "narrow", "one-sample", "sequence"],
}
TAKEN, REFUSED = (
    [
        pytest.param(name, shape, axis, id=f"{name}-{kind}")
        for name in PLAIN
        for shape, axis, kind in SHAPES
        if (kind in FITS[name]) == fits
    ]
    for fits in (True, False)
)


@pytest.mark.parametrize(("name", "shape", "axis"), REFUSED)
def test_a_shape_that_does_not_fit_is_refused(name: str, shape: tuple[int, ...], axis: int) -> None:
    with pytest.raises(DniFxError, match=f"{name}.* not a tensor of shape"):
        REGISTRY[name](Activation(shape, torch.float32, CPU, axis), 0)


@pytest.mark.parametrize("size", [0, 3])
@pytest.mark.parametrize(("name", "shape", "axis"), TAKEN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_contract(name: str, shape: tuple[int, ...], axis: int, size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    activation = Activation(shape, dtype, CPU, axis)
    synthesizer = REGISTRY[name](activation, size).to(dtype)
    h = torch.randn(shape).to(dtype)
    context = _context(shape, axis, size)
    predicted = synthesizer(h, context)
    assert (predicted.shape, predicted.dtype) == (h.shape, dtype)
    assert not predicted.any()  # untrained, it predicts no gradient
    step = torch.optim.SGD(synthesizer.parameters(), 0.1)
    for _ in range(3):  # where the last layer is zero, the first one gets no gradient in the first step
        step.zero_grad()
        synthesizer(h, context).backward(torch.rand(shape).to(dtype) - 0.8)
        step.step()
    for parameter_name, parameter in synthesizer.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), parameter_name
    assert synthesizer(h, context).any()
    longer = torch.cat([h, h])
    more = None if context is None else torch.cat([context, context])
    torch.testing.assert_close(synthesizer(longer, more)[: len(h)], synthesizer(h, context))
    if context is not None and dtype == torch.float64:
        assert not torch.equal(synthesizer(h, context), synthesizer(h, 1 - context))
    assert activation.features == shape[axis]


@pytest.mark.parametrize("name", PLAIN)
def test_a_synthesizer_learns_a_linear_rule(name: str) -> None:
    """Its gradient is that of half the squared error: the same rule that `ops` applies."""
    torch.manual_seed(0)
    shape = {"conv": (64, 4, 6), "attention": (64, 6, 4)}.get(name, (64, 4))
    axis = 1 if name == "conv" else len(shape) - 1
    synthesizer = REGISTRY[name](Activation(shape, torch.float32, CPU, axis), 0)
    optimizer = torch.optim.Adam(synthesizer.parameters(), 0.05)
    h = torch.randn(shape)
    target = 0.7 * h - 0.2
    for _ in range(200):
        optimizer.zero_grad()
        predicted = synthesizer(h, None)
        predicted.backward((predicted - target).detach() / 64)
        optimizer.step()
    error = (synthesizer(h, None).detach() - target).norm() / target.norm()
    assert error.item() < 0.2


def test_conv_takes_any_size() -> None:
    synthesizer = REGISTRY["conv"](Activation((2, 3, 8, 8), torch.float32, CPU, 1), 0)
    for size in ((2, 3, 8, 8), (5, 3, 7, 9), (1, 3, 1, 1), (2, 3, 33, 2)):
        assert synthesizer(torch.rand(size), None).shape == size


X = torch.randn(6, 8)

OPTIONS: list[tuple[str, tuple[int, ...], int]] = [
    ("mlp(hidden_layers=0)", (5, 7), 1),
    ("mlp(hidden_layers=2, hidden_size=16, batch_norm=True)", (5, 7), 1),
    ("mlp(hidden_layers=2, batch_norm=True)", (1, 7), 1),
    ("mlp(hidden_layers=1, batch_norm=True)", (5, 4, 7), 2),
    ("mlp(batch_norm=True)", (5, 7, 3, 4), 1),
    ("mlp(nonlinearity='sigmoid')", (5, 7), 1),
    ("mlp(nonlinearity='tanh')", (5, 7), 1),
    ("mlp(nonlinearity='gelu')", (5, 7), 1),
    ("conv(hidden_layers=2, channels=16, kernel_size=5, batch_norm=True)", (2, 4, 9, 6), 1),
    ("conv(hidden_layers=1, batch_norm=True)", (1, 4, 1, 1), 1),
    ("conv(kernel_size=1)", (2, 4, 9), 1),
    ("conv(hidden_layers=1)", (2, 4, 3, 4, 5), 1),
    ("lstm(layers=2, hidden_size=5, dropout=0.1)", (5, 7), 1),
    ("gru(layers=2, hidden_size=5)", (5, 4, 7), 2),
    ("rnn(carry=True)", (5, 4, 7), 2),
    ("attention(heads=2, hidden_size=6)", (5, 4, 7), 2),
]


@pytest.mark.parametrize(("text", "shape", "axis"), OPTIONS)
@pytest.mark.parametrize("size", [0, 3])
def test_options(text: str, shape: tuple[int, ...], axis: int, size: int) -> None:
    synthesizer = make(text, shape, axis, size)
    h = torch.randn(shape)
    context = torch.rand([size if i == axis else n for i, n in enumerate(shape)]) if size else None
    assert not synthesizer(h, context).any()
    wake(synthesizer)
    predicted = synthesizer(h, context)
    assert predicted.shape == shape and predicted.isfinite().all() and predicted.any()
    predicted.square().sum().backward()
    assert all(p.grad is not None for p in synthesizer.parameters())


WRONG: list[tuple[str, tuple[int, ...], int, str]] = [
    ("mlp(hidden_layers=-1)", (5, 7), 1, "hidden_layers=-1"),
    ("mlp(hidden_size=1.5)", (5, 7), 1, "hidden_size=1.5"),
    ("mlp(nonlinearity='swish')", (5, 7), 1, "relu, sigmoid, tanh, gelu"),
    ("mlp(depth=2)", (5, 7), 1, "no option 'depth'; there are hidden_layers"),
    ("linear(bias=True)", (5, 7), 1, "no option 'bias'; there are none"),
    ("conv(kernel_size=4)", (2, 4, 9), 1, "an odd one"),
    ("conv(channels=0)", (2, 4, 9), 1, "channels=0"),
    ("lstm(layers=0)", (5, 7), 1, "layers=0"),
    ("lstm(dropout=1.0)", (5, 7), 1, "dropout=1.0"),
    ("lstm", (5, 7, 3, 4), 1, "vectors (N, F) and sequences (N, T, F)"),
    ("gru", (5, 7, 9), 1, "with its features on axis 1"),
    ("attention", (5, 7), 1, "sequences (N, T, F)"),
    ("attention(heads=3)", (5, 4, 8), 2, "does not divide"),
    ("least_squares(ridge=0)", (5, 7), 1, "ridge=0; a positive number"),
    ("least_squares(memory=1)", (5, 7), 1, "memory=1; a whole number, 2 or more"),
    ("least_squares(every=0)", (5, 7), 1, "every=0"),
    ("mlp(2)", (5, 7), 1, "name(option=value, ...)"),
    ("mlp(hidden_size=a)", (5, 7), 1, "name(option=value, ...)"),
    ("mlp(", (5, 7), 1, "name(option=value, ...)"),
]


@pytest.mark.parametrize(("text", "shape", "axis", "message"), WRONG)
def test_wrong_options(text: str, shape: tuple[int, ...], axis: int, message: str) -> None:
    with pytest.raises(DniFxError) as caught:
        make(text, shape, axis)
    assert message in str(caught.value) and "\n" not in str(caught.value)


RECURRENT = ["lstm", "gru", "rnn"]


@pytest.mark.parametrize("text", [*RECURRENT, "mlp(hidden_layers=2, batch_norm=True)", "attention", "least_squares"])
@pytest.mark.parametrize("unlock", ["none", "backward"])
def test_in_a_net(text: str, unlock: str) -> None:
    x = torch.randn(6, 5, 8) if text == "attention" else X
    net = dni_fx.transform(two_layers(8), x, cuts=["1"], synthesizer=text, unlock=unlock)
    for _ in range(3):
        net(x).square().mean().backward()
    report = dni_fx.check(net, x)
    assert report, report
    net.dni.reset()
