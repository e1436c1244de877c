"""The axis of features, and the synthesizer that is chosen for it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dni_fx


class ViT(nn.Module):
    """Channels last after a convolution, then layer norm: (B, H, W, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 2, stride=2)
        self.norm = nn.LayerNorm(6)
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.patch(x).permute(0, 2, 3, 1))
        return self.b(torch.relu(self.a(h)))


class ThereAndBack(nn.Module):
    """Channels last and first again; then one spatial axis is averaged over."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 2, stride=2)
        self.mix = nn.Linear(6, 5)
        self.last = nn.Conv1d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.mix(torch.permute(self.patch(x), (0, 2, 3, 1))))
        return self.last(torch.tanh(torch.movedim(h, -1, 1)).mean(2))


class Grid(nn.Module):
    """A sequence that is unrolled to a grid."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        grid = torch.relu(self.a(x).view(x.shape[0], 3, 4, 5))
        return self.b(grid.swapaxes(2, 3))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 2, stride=2)
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patch(x).flatten(2).transpose(1, 2)
        return self.b(torch.relu(self.a(h)))


def _sound() -> nn.Module:
    return nn.Sequential(nn.Conv1d(3, 6, 3), nn.ReLU(), nn.Conv1d(6, 6, 3), nn.Flatten(), nn.Linear(6 * 6, 2))


def _volume() -> nn.Module:
    return nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8, 2))


def _image() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 8), nn.ReLU(),
        nn.Linear(8, 2),
    )  # fmt: skip


def _text() -> nn.Module:
    return nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))


IMAGE = torch.rand(2, 3, 8, 8)

AUTO: list[tuple[Callable[[], nn.Module], Tensor, str, str, int]] = [
    # model, example, cut after, the synthesizer, the feature axis
    (_sound, torch.rand(2, 3, 10), "0", "conv", 1),
    (_sound, torch.rand(2, 3, 10), "1", "conv", 1),
    (_sound, torch.rand(2, 3, 10), "3", "linear", -1),
    (_image, IMAGE, "1", "conv", 1),
    (_image, IMAGE, "3", "conv", 1),
    (_image, IMAGE, "4", "linear", -1),
    (_image, IMAGE, "6", "linear", -1),
    (_volume, torch.rand(2, 1, 4, 4, 4), "2", "conv", 1),
    (ViT, IMAGE, "patch", "conv", 1),
    (ViT, IMAGE, "permute", "linear", -1),
    (ViT, IMAGE, "norm", "linear", -1),
    (ThereAndBack, IMAGE, "relu", "linear", -1),
    (ThereAndBack, IMAGE, "movedim", "conv", 1),
    (ThereAndBack, IMAGE, "tanh", "conv", 1),
    (ThereAndBack, IMAGE, "mean", "conv", 1),
    (Grid, torch.rand(2, 12, 6), "relu", "linear", -1),
    (Grid, torch.rand(2, 12, 6), "swapaxes", "linear", 2),
    (ViT, IMAGE, "relu", "linear", -1),
    (Tokens, IMAGE, "patch", "conv", 1),
    (Tokens, IMAGE, "flatten", "conv", 1),
    (Tokens, IMAGE, "transpose", "linear", -1),
    (Tokens, IMAGE, "relu", "linear", -1),
    (_text, torch.randint(0, 9, (2, 5)), "0", "linear", -1),
    (_text, torch.randint(0, 9, (2, 5)), "2", "linear", -1),
]


@pytest.mark.parametrize("unlock", ["none", "backward"])
@pytest.mark.parametrize(
    ("make", "example", "cut", "name", "axis"), AUTO, ids=[f"{c[0].__name__}-{c[2]}-{c[3]}" for c in AUTO]
)
def test_auto(make: Any, example: Tensor, cut: str, name: str, axis: int, unlock: str) -> None:
    net = dni_fx.transform(make(), example, cuts=[cut], classes=3, unlock=unlock)
    plan = net.dni.plan
    assert plan.rewrite is not None
    assert set(plan.rewrite.synthesizers.values()) == {name}
    shape = plan.cuts[0].tensors[0].shape
    assert plan.cuts[0].tensors[0].axis % len(shape) == axis % len(shape)
    net(example, dni_context=torch.tensor([0, 2])).sum().backward()
    assert all(p.grad is not None for p in net.dni.parameters())
