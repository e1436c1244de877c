"""Options of the synthesizers, the state that recurrent ones carry, and the interface that pytorch-dni has."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dni_fx
from dni_fx.errors import DniFxError
from dni_fx.synthesizers.base import Activation
from dni_fx.synthesizers.foreign import adapt
from dni_fx.synthesizers.registry import resolve

CPU = torch.device("cpu")
X = torch.randn(6, 8)


def make(text: str, shape: tuple[int, ...], axis: int = -1, size: int = 0) -> Any:
    torch.manual_seed(0)
    axis = axis % len(shape)
    return resolve(text, shape, axis)[1](Activation(shape, torch.float32, CPU, axis), size)


def wake(synthesizer: nn.Module) -> None:
    """Untrained it says zero, whatever it knows."""
    with torch.no_grad():
        for parameter in synthesizer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


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


def test_zero_is_the_control() -> None:
    net = dni_fx.transform(mlp(), X, cuts=2, synthesizer="zero", verify=False).train()
    net(X).sum().backward()
    (below, *_), (*_, above) = ([p.grad for p in net.get_submodule(name).parameters()] for name in ("0", "2"))
    assert not below.any() and above.any()
    assert not [*net.dni.parameters()]


def test_options_are_what_they_say() -> None:
    paper = make("mlp(hidden_layers=2, hidden_size=1024, batch_norm=True)", (4, 256), 1)
    names = [type(layer).__name__ for layer in paper.net]
    assert names == ["Linear", "Norm", "ReLU", "Linear", "Norm", "ReLU", "Linear"]
    assert paper.net[0].out_features == paper.net[3].out_features == 1024
    conv = make("conv(hidden_layers=1, channels=16, kernel_size=5)", (2, 4, 9, 6), 1)
    assert (conv.net[0].out_channels, conv.net[0].kernel_size, len(conv.net)) == (16, (5, 5), 3)
    assert make("lstm(layers=3)", (5, 7)).net.num_layers == 3


def test_batch_norm_normalises_over_batch_and_positions() -> None:
    norm = make("mlp(batch_norm=True)", (5, 7, 3, 4), 1).net[1]
    reference = nn.BatchNorm1d(7)
    rows = torch.randn(60, 7)
    torch.testing.assert_close(norm(rows), reference(rows))
    torch.testing.assert_close(norm.running_var, reference.running_var)
    norm(rows[:1])  # a single row has no variance: the running statistics serve
    torch.testing.assert_close(norm.running_var, reference.running_var)


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


# ---------------------------------------------------------------------------------------- carried state
RECURRENT = ["lstm", "gru", "rnn"]


@pytest.mark.parametrize("name", RECURRENT)
def test_the_state_is_carried_and_reset(name: str) -> None:
    synthesizer = make(name, (6, 8))
    wake(synthesizer)
    first, second = synthesizer(X), synthesizer(X)
    assert not torch.allclose(first, second)
    synthesizer.reset()
    torch.testing.assert_close(synthesizer(X), first)
    synthesizer(torch.randn(3, 8))  # another batch size: the state is dropped, here and back again
    torch.testing.assert_close(synthesizer(X), first)


@pytest.mark.parametrize("name", RECURRENT)
def test_calls_of_a_step_are_a_call_of_a_sequence(name: str) -> None:
    steps, whole = make(name, (6, 8)), make(name, (6, 4, 8))
    wake(steps)
    whole.load_state_dict(steps.state_dict())
    sequence = torch.randn(6, 4, 8)
    one_by_one = torch.stack([steps(sequence[:, t]) for t in range(4)], 1)
    torch.testing.assert_close(one_by_one, whole(sequence))
    torch.testing.assert_close(whole(sequence), whole(sequence))  # each sequence starts anew
    carrying = make(f"{name}(carry=True)", (6, 4, 8))
    carrying.load_state_dict(steps.state_dict())
    assert not torch.allclose(carrying(sequence), carrying(sequence))


def test_the_state_is_no_part_of_the_weights() -> None:
    synthesizer = make("lstm", (6, 8))
    wake(synthesizer)
    names = list(synthesizer.state_dict())
    predicted = synthesizer(X)
    predicted.sum().backward()
    assert list(synthesizer.state_dict()) == names
    again = pickle.loads(pickle.dumps(copy.deepcopy(synthesizer)))
    torch.testing.assert_close(again(X), synthesizer(X))


@pytest.mark.parametrize("name", RECURRENT)
def test_it_learns_what_depends_on_the_step_before(name: str) -> None:
    """Which a linear one cannot: it is left with the variance of the target."""
    synthesizer = make(f"{name}(hidden_size=24)", (32, 6, 4))
    optimizer = torch.optim.Adam(synthesizer.parameters(), 0.02)
    for _ in range(250):
        h = torch.randn(32, 6, 4)
        target = torch.cat([torch.zeros(32, 1, 4), h[:, :-1].tanh()], 1)
        optimizer.zero_grad()
        error = (synthesizer(h) - target).square().mean() / target.square().mean()
        error.backward()
        optimizer.step()
    assert float(error.detach()) < 0.3


@pytest.mark.parametrize("text", [*RECURRENT, "mlp(hidden_layers=2, batch_norm=True)", "attention", "least_squares"])
@pytest.mark.parametrize("unlock", ["none", "backward"])
def test_in_a_net(text: str, unlock: str) -> None:
    x = torch.randn(6, 5, 8) if text == "attention" else X
    net = dni_fx.transform(mlp(), x, cuts=["1"], synthesizer=text, unlock=unlock)
    for _ in range(3):
        net(x).square().mean().backward()
    report = dni_fx.check(net, x)
    assert report, report
    net.dni.reset()


def fitted(shape: tuple[int, ...], unit: float, known: int | None = None, steps: int = 10) -> tuple[Any, Tensor]:
    """Least squares told `unit` times a linear rule, of the first `known` rows; and the rule."""
    synthesizer = make("least_squares(ridge=1e-6)", shape)
    rule = torch.randn(shape[-1], shape[-1])
    for _ in range(steps):
        h = torch.randn(shape)
        said = synthesizer(h)
        error = said.detach() - unit * (h @ rule + 1)
        if known is not None:
            error[known:] = 0
        said.backward(error / shape[0])  # as a `Crossing` hears it: of the mean
    return synthesizer, rule


@pytest.mark.parametrize("shape", [(32, 4), (8, 6, 4)])
@pytest.mark.parametrize("unit", [1.0, 1e-6])
def test_least_squares_are_exact_in_any_unit(shape: tuple[int, ...], unit: float) -> None:
    synthesizer, rule = fitted(shape, unit)
    h = torch.randn(shape)
    torch.testing.assert_close(synthesizer(h) / unit, h @ rule + 1, rtol=1e-3, atol=1e-3)


def test_least_squares_learn_nothing_of_rows_of_which_nothing_is_known() -> None:
    synthesizer, rule = fitted((32, 4), 1.0, known=16)
    assert synthesizer.squares[-1, -1] == pytest.approx(16 * sum(0.99**i for i in range(10)))
    h = torch.randn(5, 4)
    torch.testing.assert_close(synthesizer(h), h @ rule + 1, rtol=1e-3, atol=1e-3)


def test_least_squares_forget() -> None:
    synthesizer, _ = fitted((32, 4), 1.0)
    for _ in range(2000):
        h = torch.randn(32, 4)
        said = synthesizer(h)
        said.backward((said.detach() + h) / 32)
    h = torch.randn(5, 4)
    torch.testing.assert_close(synthesizer(h), -h, rtol=1e-3, atol=1e-3)


def test_least_squares_that_cannot_be() -> None:
    with pytest.raises(DniFxError, match="too coarse: use mlp"):
        resolve("least_squares", (5, 7), 1)[1](Activation((5, 7), torch.bfloat16, CPU, 1), 0)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo looks at tensors
def test_least_squares_are_fitted_beside_what_is_compiled() -> None:
    options: Any = {"cuts": ["1"], "synthesizer": "least_squares", "unlock": "none"}
    nets = [dni_fx.transform(mlp(), X, **options, compile=how) for how in (False, {"backend": "aot_eager"})]
    for net in nets:
        for _ in range(6):
            net(X).square().mean().backward()
    one, other = (next(iter(net.dni.synthesizers.values())) for net in nets)
    assert one.weight.any()
    torch.testing.assert_close(one.weight, other.weight)


def test_attention_sees_the_tokens_to_come() -> None:
    synthesizer = make("attention", (2, 5, 8))
    wake(synthesizer)
    h = torch.randn(2, 5, 8)
    other = h.clone()
    other[:, 4] += 1
    assert not torch.allclose(synthesizer(h)[:, 0], synthesizer(other)[:, 0])


# ------------------------------------------------------------------------------------- the older interface
class Older(nn.Module):
    """Counts its calls in `hidden`; flattens what it gives."""

    def __init__(self, input_size: int, hidden_size: int, output_size: int, bias: bool = True) -> None:
        super().__init__()
        self.sizes = input_size, hidden_size, output_size, bias
        self.net = nn.Linear(input_size, output_size, bias=bias)

    def forward(self, input: Tensor, hidden: Any) -> Any:
        calls = torch.zeros(1) if hidden is None else hidden["calls"] + 1
        return self.net(input).flatten(0, -2) + calls, {"calls": calls}


def test_the_older_interface() -> None:
    factory = adapt(Older, hidden_size=3, bias=False)
    assert factory.__name__ == "Older"
    synthesizer: Any = factory(Activation((4, 5, 6), torch.float32, CPU, 2), 2)
    assert synthesizer.module.sizes == (8, 3, 6, False)
    h, context = torch.randn(4, 5, 6), torch.randn(4, 5, 2)
    first = synthesizer(h, context)
    torch.testing.assert_close(first, synthesizer.module.net(torch.cat([h, context], -1)))
    torch.testing.assert_close(synthesizer(h, context), first + 1)
    synthesizer.reset()
    torch.testing.assert_close(synthesizer(h, context), first)
    torch.testing.assert_close(synthesizer(h[:2], context[:2]), first[:2])
    channels: Any = factory(Activation((4, 6, 5), torch.float32, CPU, 1), 0)
    assert channels(torch.randn(4, 6, 5)).shape == (4, 6, 5)
    net = dni_fx.transform(mlp(), X, cuts=["1"], synthesizer=factory)
    assert dni_fx.check(net, X)


def test_an_older_synthesizer_of_the_wrong_size() -> None:
    class Narrow(Older):
        def forward(self, input: Tensor, hidden: Any) -> Any:
            return self.net(input)[..., :2], None

    with pytest.raises(DniFxError, match="Narrow gave"):
        dni_fx.transform(mlp(), X, cuts=["1"], synthesizer=adapt(Narrow))
