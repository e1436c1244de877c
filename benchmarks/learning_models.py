"""The nets of benchmarks/learning.py: each ends in one tensor, and names its blocks so that cuts can name them."""

import math

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """The attention branch of a pre-norm transformer, with its skip."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.out(mixed.transpose(1, 2).flatten(2))


class Perceptron(nn.Module):
    """A layer norm and two linear layers, with a skip."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.net = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(self.norm(x))


class GPT(nn.Module):
    """A causal transformer over tokens; small weights in front of each sum."""

    def __init__(self, tokens: int, length: int, width: int, blocks: int, heads: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.position = nn.Parameter(torch.randn(1, length, width) * 0.02)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(
            nn.Sequential(Attention(width, heads), Perceptron(width, 4 * width)) for _ in range(blocks)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, tokens)

    def scale_branches(self) -> "GPT":
        """Make the branches of a deep net small at the start (Radford et al. 2019)."""
        for attention, perceptron in self.blocks:
            for layer in (attention.out, perceptron.net[2]):
                nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * len(self.blocks)))
        return self

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x) + self.position
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


class Basic(nn.Module):
    """Two 3x3 convolutions; a 1x1 convolution on the shortcut where the shape changes."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(n_out), nn.BatchNorm2d(n_out)
        changes = stride > 1 or n_in != n_out
        shortcut = [nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)] if changes else []
        self.shortcut = nn.Sequential(*shortcut) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(h)) + self.shortcut(x))


class ResNet(nn.Module):
    """Three stages of 16, 32 and 64 channels (He et al. 2016, Sect. 4.2, whose stem has stride 1)."""

    def __init__(self, blocks_each: int, channels: int = 1, stem_stride: int = 2) -> None:
        super().__init__()
        first = nn.Conv2d(channels, 16, 3, stem_stride, padding=1, bias=False)
        self.stem = nn.Sequential(first, nn.BatchNorm2d(16), nn.ReLU())
        blocks, n_in = [], 16
        for width, stride in ((16, 1), (32, 2), (64, 2)):
            for i in range(blocks_each):
                blocks.append(Basic(n_in, width, stride if i == 0 else 1))
                n_in = width
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def level(n_in: int, n_out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size in (n_in, n_out):
        layers += [nn.Conv2d(size, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Three levels down, three up; each level up also reads its level down."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.down = nn.ModuleList([level(1, 8), level(8, 16), level(16, 32)])
        self.bottom = level(32, 48)
        self.narrow = nn.ModuleList([nn.Conv2d(48, 32, 1), nn.Conv2d(32, 16, 1), nn.Conv2d(16, 8, 1)])
        self.up = nn.ModuleList([level(64, 32), level(32, 16), level(16, 8)])
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down[0](x)
        second = self.down[1](self.pool(first))
        third = self.down[2](self.pool(second))
        h = self.bottom(self.pool(third))
        for narrow, up, skip in zip(self.narrow, self.up, (third, second, first), strict=True):
            h = up(torch.cat([nn.functional.interpolate(narrow(h), scale_factor=2.0), skip], 1))
        return self.head(h)


class ResidualMLP(nn.Module):
    """Residual blocks of two linear layers."""

    def __init__(self, n_in: int, width: int, n_out: int, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Linear(n_in, width)
        self.blocks = nn.ModuleList(Perceptron(width, 2 * width) for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, n_out)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


class Chain(nn.Module):
    """Linear layers with ReLU between them, but for the layers without."""

    def __init__(self, *widths: int, linear: tuple[int, ...] = ()) -> None:
        super().__init__()
        *hidden, last = zip(widths, widths[1:], strict=False)
        self.blocks = nn.ModuleList(
            nn.Linear(*size) if i in linear else nn.Sequential(nn.Linear(*size), nn.ReLU())
            for i, size in enumerate(hidden)
        )
        self.head = nn.Linear(*last)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for block in self.blocks:
            x = block(x)
        return self.head(x)
