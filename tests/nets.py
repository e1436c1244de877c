"""Nets that several test files cut: small, each with one thing that is hard."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Stack(nn.Module):
    """Two layers below what a subclass does in `middle`, two above."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(6, 6) for _ in range(4))
        self.act = nn.Tanh()

    def forward(self, x: Tensor) -> Any:
        return self.d(self.act(self.c(self.middle(self.act(self.b(self.act(self.a(x))))))))

    def middle(self, h: Tensor) -> Tensor:
        return h


class Residual(nn.Module):
    """In-place activations, and a skip that is added in place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.relu(self.first(x)))
        y += x
        return self.relu(y)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))
        self.blocks = nn.Sequential(*(Residual(8) for _ in range(3)))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


class LongSkip(nn.Module):
    """A tensor that crosses every cut, as in a U-Net; a cut is crossed by two."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        i = torch.tanh(self.b(h))
        j = torch.tanh(self.c(i) + h)
        return self.d(torch.cat([j, h], 1)[:, 3:9]) + i


class WrittenAbove(nn.Module):
    """A value that is written to in place right after it can be cut, and whose view is used again."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        view = h.view(-1, 2, 3)
        view.mul_(2)
        k = self.b(torch.tanh(h))
        k.add_(1).relu_()
        return self.c(k)


class Tied(nn.Module):
    """One parameter in two segments, and a module that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 6)
        self.mix = nn.Linear(6, 6)
        self.last = nn.Linear(6, 6)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        h = torch.tanh(self.mix(self.embed(ids)))
        h = torch.tanh(self.mix(h)) * mask.unsqueeze(-1)
        return nn.functional.linear(self.last(h), self.embed.weight)


class Recurrent(nn.Module):
    """A layer that gives a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 6, batch_first=True)
        self.gru = nn.GRU(6, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y, (h, _) = self.lstm(x)
        z, _ = self.gru(y)
        return {"logits": self.head(z), "state": h}


def two_layers(width: int = 6) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, 8), nn.Tanh(), nn.Linear(8, 3))


def three_layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def perceptron(between: Callable[[], nn.Module] | None = None) -> nn.Module:
    """Four layers of 8 features, each with what `between` makes before its tanh, and a last one with 3; seeded."""
    torch.manual_seed(0)
    made = [(nn.Linear(8, 8), *([between()] if between else []), nn.Tanh()) for _ in range(4)]
    return nn.Sequential(*[layer for layers in made for layer in layers], nn.Linear(8, 3))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Linear(8, 8),
        nn.ReLU(),
        nn.Linear(8, 8),
        nn.ReLU(),
        nn.Linear(8, 4),
    )


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(64, 4),
    )


X = torch.rand(5, 6)

CASES: list[tuple[str, Callable[[], nn.Module], tuple[torch.Tensor, ...], Any]] = [
    ("mlp", mlp, (X,), 3),
    ("mlp-two", mlp, (X,), 2),
    ("cnn", cnn, (torch.rand(5, 1, 8, 8),), 2),
    ("resnet", ResNet, (X,), "every:Residual"),
    ("resnet-inside", ResNet, (X,), ["blocks.0.first", "blocks.1.second", "blocks.2"]),
    ("long-skip", LongSkip, (X,), ["tanh", "tanh_1", "tanh_2"]),
    ("written-above", WrittenAbove, (X,), ["a", "b"]),
    ("tied", Tied, (torch.randint(0, 10, (5, 7)), torch.rand(5, 7)), ["tanh", "mul"]),
    ("recurrent", Recurrent, (torch.rand(5, 4, 5),), ["lstm", "gru"]),
]

IDS = [case[0] for case in CASES]


class Keywords(Stack):
    def forward(self, x: Tensor, *rest: Tensor, mask: Tensor | None = None, **extra: Tensor) -> dict[str, Any]:
        h = self.act(self.b(self.act(self.a(x))))
        for other in rest:
            h = h + other
        for name in sorted(extra):
            h = h * extra[name]
        if mask is not None:
            h = h * mask
        return {"out": self.d(self.act(self.c(h))), "hidden": h, "nothing": None, "three": 3}


class Twice(Stack):
    def middle(self, h: Tensor) -> Tensor:
        return self.act(self.b(self.act(self.b(h))))


class TiedWeights(Stack):
    def __init__(self) -> None:
        super().__init__()
        self.d.weight = self.a.weight


class Checkpointed(Stack):
    def middle(self, h: Tensor) -> Tensor:
        return checkpoint(lambda t: self.act(self.b(t)), h, use_reentrant=False)


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Sequential(nn.Linear(6, 6), nn.Tanh()), nn.Linear(6, 6)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return x


class Moody(Stack):
    """Keeps one of its modules in eval mode, as people do with a pretrained batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.noise = nn.BatchNorm1d(6), nn.Dropout(0.5)

    def train(self, mode: bool = True) -> "Moody":
        super().train(mode)
        self.norm.eval()
        return self

    def middle(self, h: Tensor) -> Tensor:
        return self.noise(self.norm(h))


class Base(nn.Module):
    """Three layers, for forwards that differ."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))

    def above(self, h: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(h))))


class Arguments(Base):
    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, double: bool = False, mode: str = "plain", pair: Any = None
    ) -> Tensor:
        h = self.a(x)
        if mask is not None:
            h = h * mask
        if double:
            h = 2 * h
        if mode == "shifted":
            h = h + 1
        if pair is not None:
            h = h + pair[0] * pair[1]["scale"]
        return self.above(h)


class Dicts(Base):
    def forward(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        h = self.a(batch["x"]) * batch["mask"]
        return {"y": self.above(h), "more": (h, [h + 1])}


class NormBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.linear(x)))


class NormedResidual(nn.Module):
    """A residual branch on 8 features, as in a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.inner(self.norm(x)))


def deep(width: int = 64) -> nn.Module:
    """Nine blocks in a Sequential, between two layers; seeded."""
    torch.manual_seed(0)
    blocks = nn.Sequential(*[NormBlock(width) for _ in range(9)])
    return nn.Sequential(nn.Linear(width, width), blocks, nn.Linear(width, 2))
