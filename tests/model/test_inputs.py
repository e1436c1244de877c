"""Example inputs: the grammar of `--input`, and shapes that are tried on models nobody described."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dni_fx.errors import DniFxError
from dni_fx.model.inputs import describe, given
from dni_fx.model.probe import probe
from dni_fx.model.specs import parse_specs

GOOD = [
    # text, shape, dtype, lowest, highest (of integers: included)
    ("64x784", (64, 784), torch.float32, None, None),
    ("4", (4,), torch.float32, None, None),
    ("2x3x4x5", (2, 3, 4, 5), torch.float32, None, None),
    (" 2x3 ", (2, 3), torch.float32, None, None),
    ("8x128:int64", (8, 128), torch.int64, 0, 1),
    ("8x128:int64:5-7", (8, 128), torch.int64, 5, 6),
    ("8x128:int32:-3--1", (8, 128), torch.int32, -3, -2),
    ("8x128:int64:0-1", (8, 128), torch.int64, 0, 0),
    ("3x3:bool", (3, 3), torch.bool, 0, 1),
    ("3x3:bfloat16", (3, 3), torch.bfloat16, None, None),
    ("3x3:float64:2-4", (3, 3), torch.float64, 2, 4),
    ("9x9:float32:-1-1", (9, 9), torch.float32, -1, 1),
    ("3x3:complex64", (3, 3), torch.complex64, None, None),
]


@pytest.mark.parametrize(("text", "shape", "dtype", "low", "high"), GOOD)
def test_spec(text: str, shape: tuple[int, ...], dtype: torch.dtype, low: float | None, high: float | None) -> None:
    inputs = parse_specs([text])
    (tensor,) = inputs.args
    assert (tuple(tensor.shape), tensor.dtype, inputs.kwargs) == (shape, dtype, {})
    if low is not None:
        assert low <= tensor.min().item()
        assert tensor.max().item() <= high


def test_specs_with_names() -> None:
    inputs = parse_specs(["2x3", "ids=2x4:int64:0-9", "4x1", "a_1=5"])
    assert describe(inputs) == ("0: 2x3 float32", "1: 4x1 float32", "ids: 2x4 int64", "a_1: 5 float32")


BAD = [
    (["0y3"], "'0y3' is not"),
    ([""], "is not"),
    (["x"], "is not"),
    (["2x"], "is not"),
    (["2x-3"], "is not"),
    (["2,3"], "is not"),
    (["2x3:"], "is not"),
    (["=2x3"], "is not"),
    (["1a=2x3"], "is not"),
    (["2x3:int64:4"], "is not"),
    (["2x3\nx"], "is not"),
    (["2x3:float"], None),  # torch.float: an alias, fine
    (["2x3:floaty"], "'floaty' is no torch dtype"),
    (["2x3:nn"], "'nn' is no torch dtype"),
    (["2x3:Tensor"], "is no torch dtype"),
    (["2x3:int64:5-5"], "the range 5-5 is empty"),
    (["2x3:int64:9-2"], "the range 9-2 is empty"),
    (["2x0x3"], "without entries"),
    (["a=2x3", "a=2x4"], "'a' is given twice"),
    (["2x3:0-4"], None),  # a range without a type: floats
    (["3x3:complex64:0-4"], "complex64"),
    (["3x3:bool:0-7"], "bool"),
    (["2x3:uint8:0-256"], None),
    (["2x3:uint8:0-999"], "uint8"),
    (["2x3:int8:-129-0"], "int8"),
    (["2x3:float8_e4m3fn"], "float8_e4m3fn"),
    (["2x3:qint8"], "qint8"),
    (["99999999x99999999x99999999"], "99999999"),
    (["2x3:int64:0-99999999999999999999"], "99999999999999999999"),
    (["2x3:float32:0-1" + "0" * 400], "float32"),
]


@pytest.mark.parametrize(("texts", "message"), BAD, ids=[repr(c[0])[:40] for c in BAD])
def test_bad_spec(texts: list[str], message: str | None) -> None:
    if message is None:
        assert parse_specs(texts).args[0].shape == (int(texts[0][0]), 3)
        return
    with pytest.raises(DniFxError) as caught:
        parse_specs(texts)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_describe() -> None:
    inputs = given((torch.ones(2, 3), 4, None, [torch.ones(1), torch.tensor(2)]), {"flag": True})
    assert describe(inputs) == ("0: 2x3 float32", "1: 4", "2: None", "3: 1 float32, scalar int64", "flag: True")


def test_given() -> None:
    x = torch.ones(2)
    assert given(x, None).args == (x,)
    assert given([x, 3], None).args == (x, 3)
    assert given(None, {"a": x}) == given((), {"a": x})
    assert [t is x for t in given(({"deep": [x]}, 3), {"y": x}).tensors()] == [True, True]
    mapped = given(({"deep": [x]}, 3), None).map(lambda t: t + 1)
    assert mapped.args[0]["deep"][0].tolist() == [2, 2]
    assert mapped.args[1] == 3


# ------------------------------------------------------------------------------------------------- probing
class Two(nn.Module):
    """Token ids and features."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 6)
        self.features = nn.Linear(11, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, ids: Tensor, features: Tensor) -> Tensor:
        return self.head(self.embed(ids).mean(1) + self.features(features))


class Default(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        return self.layer(x) * scale


class Choosy(nn.Module):
    """Value-dependent control flow: shapes can still be found."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(13, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y if y.sum().item() > 0 else -y


class Restless(nn.Module):
    """Changes all it can while it runs, and after a failed try."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(7)
        self.layer = nn.Linear(7, 2)
        self.drop = nn.Dropout(0.5)
        self.calls = 0
        self.notes: dict[str, int] = {}
        self.register_buffer("seen", torch.zeros(2))
        self.register_buffer("late", None)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.notes["calls"] = self.calls
        if "grown" not in self._modules:
            self.grown = nn.Linear(2, 2)
        self.last = x
        self.seen += 1
        self.late = torch.ones(1)
        self.drop.p = 0.1
        assert x.dim() == 2 and x.shape[1] == 7
        return self.drop(self.layer(self.norm(x)))


def _cnn(side: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.Flatten(), nn.Linear(4 * ((side - 3) // 4 + 1) ** 2, 2))


PROBED: list[tuple[str, Callable[[], nn.Module], list[tuple[int, ...]]]] = [
    ("linear", lambda: nn.Linear(5, 2), [(4, 5)]),
    ("mlp", lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 9), nn.ReLU(), nn.Linear(9, 2)), [(4, 784)]),
    ("conv1d", lambda: nn.Conv1d(5, 2, 3), [(4, 5, 32)]),
    ("conv2d", lambda: nn.Conv2d(5, 2, 3), [(4, 5, 32, 32)]),
    ("conv3d", lambda: nn.Conv3d(1, 2, 3), [(4, 1, 32, 32, 32)]),
    ("convtranspose", lambda: nn.ConvTranspose2d(5, 2, 3), [(4, 5, 32, 32)]),
    ("embedding", lambda: nn.Embedding(5, 2), [(4, 16)]),
    ("bag", lambda: nn.EmbeddingBag(5, 2), [(4, 16)]),
    ("lstm", lambda: nn.LSTM(5, 6), [(4, 16, 5)]),
    ("gru", lambda: nn.GRU(5, 6, batch_first=True), [(4, 16, 5)]),
    ("cell", lambda: nn.LSTMCell(5, 6), [(4, 5)]),
    ("norm1d", lambda: nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 2)), [(4, 8)]),
    ("norm2d", lambda: nn.BatchNorm2d(8), [(4, 8, 16, 16)]),
    ("layernorm", lambda: nn.LayerNorm(8), [(4, 8)]),
    ("encoder", lambda: nn.TransformerEncoderLayer(16, 2, 8, batch_first=True), [(4, 16, 16)]),
    ("cnn28", lambda: _cnn(28), [(4, 3, 28, 28)]),
    ("cnn32", lambda: _cnn(32), [(4, 3, 32, 32)]),
    ("cnn224", lambda: _cnn(224), [(4, 3, 224, 224)]),
    ("two", Two, [(4, 16), (4, 11)]),
    ("default", Default, [(4, 3)]),
    ("choosy", Choosy, [(4, 13)]),
    ("double", lambda: nn.Linear(5, 2).double(), [(4, 5)]),
    ("half", lambda: nn.Linear(5, 2).to(torch.bfloat16), [(4, 5)]),
    ("bilinear", lambda: nn.Bilinear(5, 5, 2), [(4, 5), (4, 5)]),
    ("bilinear-other", lambda: nn.Bilinear(5, 6, 2), [(4, 5), (4, 6)]),
]


@pytest.mark.parametrize(("make", "shapes"), [c[1:] for c in PROBED], ids=[c[0] for c in PROBED])
def test_probe(make: Callable[[], nn.Module], shapes: list[tuple[int, ...]]) -> None:
    model = make()
    inputs = probe(model)
    assert [tuple(t.shape) for t in inputs.args] == shapes
    assert inputs.source == "probed"
    assert not inputs.kwargs
    if sum(t.numel() for t in inputs.args) < 200_000:
        model(*inputs.args)  # it is true


def _state(model: nn.Module) -> dict[str, Any]:
    state: dict[str, Any] = {k: v.clone() for k, v in model.state_dict().items()}
    for name, module in model.named_modules():
        plain = {k: copy.copy(v) for k, v in vars(module).items() if not k.startswith("_")}
        state[name] = (plain, list(module._buffers), list(module._parameters), list(module._modules))
    return state


@pytest.mark.parametrize("train", [True, False])
def test_probe_leaves_the_model_as_it_was(train: bool) -> None:
    model = Restless().train(train)
    model.drop.eval()
    model.layer.weight.grad = torch.ones_like(model.layer.weight)
    before = _state(model)
    inputs = probe(model)
    assert tuple(inputs.args[0].shape) == (4, 7)
    after = _state(model)
    assert before.keys() == after.keys()
    for name, value in before.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(after[name], value)
        else:
            assert after[name] == value, name
    assert model.late is None
    assert model.norm.num_batches_tracked == 0
    assert not hasattr(model, "last")
    assert torch.equal(model.layer.weight.grad, torch.ones_like(model.layer.weight))
    assert type(inputs.args[0]) is Tensor  # not a fake one


def test_probe_leaves_the_rng_alone() -> None:
    model = Restless()
    before = torch.get_rng_state()
    probe(model)
    assert torch.equal(torch.get_rng_state(), before)


class Picky(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        assert left.shape[0] == 17
        return self.layer(left) + right


@pytest.mark.parametrize("model", [Picky(), nn.Identity()], ids=["picky", "no-layers"])
def test_probe_fails_in_one_line(model: nn.Module) -> None:
    with pytest.raises(DniFxError) as caught:
        probe(model)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in message
    assert "--input SHAPE" in message and "example_inputs" in message
    if isinstance(model, Picky):
        assert "Picky.forward(left, right)" in message
