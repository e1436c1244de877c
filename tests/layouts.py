"""Nets whose tensors have the batch on other axes than the first, or several rows a sample, or no batch axis."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn


class Scaled(nn.Module):
    """A norm (N,) crosses the cuts below its use."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        norm = h.norm(dim=1)
        return self.d(torch.tanh(self.c(torch.tanh(self.b(h))))) * norm[:, None]


class Divergence(nn.Module):
    """A variational autoencoder whose second output has one number a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.mean, self.width = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.encoder(x))
        mean, width = self.mean(h), self.width(h)
        divergence = (mean.square() + width.exp() - width).sum(1)
        return self.last(torch.tanh(self.first(mean + width.exp()))), divergence


class TimeFirst(nn.Module):
    """Batch first outside, time first inside, as nn.LSTM is by default."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.a, self.b, self.o = nn.Linear(5, 8), nn.LSTM(8, 8), nn.LSTM(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.a(torch.tanh(self.i(x)).transpose(0, 1))
        h, _ = self.b(h)
        return self.o(h[-1])


class Encoder(nn.Module):
    """Transformer layers that take (T, N, F), and a mask (T, T)."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.o = nn.Linear(5, 8), nn.Linear(8, 3)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.i(x).transpose(0, 1)
        for layer in self.layers:
            h = layer(h, mask)
        return self.o(h.transpose(0, 1))


class Flattened(nn.Module):
    """Rows (N * T, F); with positions, T is fixed."""

    def __init__(self, length: int | None = None) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.positions = nn.Parameter(torch.zeros(length, 5)) if length else 0.0

    def forward(self, x: Tensor) -> Tensor:
        rows, length = x.shape[:2]
        h = torch.tanh(self.b(torch.tanh(self.a((x + self.positions).reshape(-1, 5)))))
        return self.c(h).reshape(rows, length, 3)


class Pixels(nn.Module):
    """A map (N, C, H, W) becomes rows (N * H * W, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.conv(x))
        rows, channels, height, width = h.shape
        h = torch.tanh(self.a(h.permute(0, 2, 3, 1).reshape(rows * height * width, channels)))
        return self.b(h).reshape(rows, height, width, 3)


class Moved(nn.Module):
    """An einsum puts the features first and the batch last."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)
        self.weight = nn.Parameter(torch.randn(8, 8) / 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.einsum("ntf,fg->gtn", torch.tanh(self.a(x)), self.weight)
        return self.b(torch.tanh(torch.tanh(h).permute(2, 1, 0)))


class Attending(nn.Module):
    """Attention scores (N * heads, T, T) have no axis of fixed size."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, _ = x.shape
        q, k, v = (
            h.view(rows, length, 2, 4).transpose(1, 2).reshape(rows * 2, length, 4)
            for h in (self.q(x), self.k(x), self.v(x))
        )
        h = (q @ k.transpose(1, 2)).softmax(-1) @ v
        return self.o(h.view(rows, 2, length, 4).transpose(1, 2).reshape(rows, length, 8))


class Views(nn.Module):
    """Two views of each sample, stacked along the batch; the output (2N, 2N) compares all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        z = self.c(torch.tanh(self.b(torch.tanh(self.a(torch.cat([x, y]))))))
        return z @ z.t()


class Prototypes(nn.Module):
    """A tensor (K, F) that is made of parameters alone crosses the cuts."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, 5))
        self.a, self.b, self.c, self.p = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(5, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        prototypes = torch.tanh(self.p(self.table))
        return self.c(torch.tanh(self.b(h))) @ prototypes.t()


class Stateful(nn.Module):
    """The state's batch is the second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.a, self.o = nn.Linear(5, 8), nn.GRU(8, 8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return self.o(torch.tanh(self.a(torch.tanh(self.i(x)), state)[0]))


class Pooled(nn.Module):
    """Pairs of samples become one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x)).view(-1, 2, 8).mean(1))))


SLOW = pytest.mark.slow

FRONTENDS = ["fx", pytest.param("export", marks=SLOW), "modules"]


class Case(NamedTuple):
    make: Callable[[], Any]
    inputs: tuple[Tensor, ...]


def sequences(rows: int = 6, length: int = 7) -> Tensor:
    return torch.randn(rows, length, 5)


CASES = {
    "scaled": Case(Scaled, (torch.randn(6, 8),)),
    "divergence": Case(Divergence, (torch.randn(6, 6),)),
    "time first": Case(TimeFirst, (sequences(),)),
    "time first, T = N": Case(TimeFirst, (sequences(6, 6),)),
    "time first, N = 1": Case(TimeFirst, (sequences(1),)),
    "encoder": Case(Encoder, (sequences(), torch.zeros(7, 7))),
    "encoder, T = N": Case(Encoder, (sequences(6, 6), torch.zeros(6, 6))),
    "flattened": Case(Flattened, (sequences(),)),
    "flattened, T fixed": Case(lambda: Flattened(7), (sequences(),)),
    "pixels": Case(Pixels, (torch.randn(2, 3, 4, 4),)),
    "moved": Case(Moved, (sequences(),)),
    "attending": Case(Attending, (torch.randn(6, 7, 8),)),
    "attending, T = F": Case(Attending, (torch.randn(6, 8, 8),)),
    "views": Case(Views, (torch.randn(6, 5), torch.randn(6, 5))),
    "prototypes": Case(Prototypes, (torch.randn(4, 5),)),
    "stateful": Case(Stateful, (sequences(), torch.zeros(2, 6, 8))),
    "stateful, N = layers": Case(Stateful, (sequences(2), torch.zeros(2, 2, 8))),
    "pooled": Case(Pooled, (torch.randn(6, 5),)),
    "tokens": Case(
        lambda: nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)), (torch.arange(6),)
    ),
}

QUICK = {"divergence", "time first, T = N", "encoder, T = N", "flattened", "moved", "attending", "views", "prototypes"}
NAMES = [name if name in QUICK else pytest.param(name, marks=SLOW) for name in CASES]
