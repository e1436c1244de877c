"""Shapes that are tried on models without example inputs."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dni_fx.errors import DniFxError
from dni_fx.model.probe import probe


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


class Branch(nn.Module):
    """On fake tensors, forward comes to the branch on values and no further."""

    def __init__(self) -> None:
        super().__init__()
        self.unused, self.layer = nn.Linear(5, 2), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else self.layer(-x)


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
    ("branch", Branch, [(4, 7)]),
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


class Differentiates(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        energy = self.layer(x).pow(2).sum()
        energy.backward()
        return energy


def test_probe_runs_a_model_that_differentiates_in_forward() -> None:
    model = Differentiates()
    assert [tuple(t.shape) for t in probe(model).args] == [(4, 3)]
    assert model.layer.weight.grad is None and type(model.layer.weight.data) is Tensor


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
