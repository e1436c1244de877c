"""The data of benchmarks/learning.py: batches, scores and nets.

Real data come from where the examples find MNIST, `DNI_FX_TEXT`, `DNI_FX_LONG_TEXT` (text files; the second may be
gzipped) and `DNI_FX_FASHION_MNIST` (a folder).
"""

import functools
import gzip
import math
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import language_model
import learning_models as models
import torch
from torch import Generator, Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import common
import transformer

FASHION = Path(os.environ.get("DNI_FX_FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
LONG_TEXT = Path(os.environ.get("DNI_FX_LONG_TEXT", "/usr/share/dictd/gcide.dict.dz"))
Inputs = tuple[Tensor, ...]
Batch = tuple[Inputs, Tensor]  # inputs, target


@dataclass(frozen=True)
class Data:
    """Batches to train on, and a score: the lower, the better."""

    batch: Callable[[Generator], Batch]
    score: Callable[[nn.Module], float]
    build: Callable[[], nn.Module]


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target)


def next_token(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output.flatten(0, 1), target.flatten())


def mean_over(batches: Iterable[Batch], loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[nn.Module], float]:
    """A score: the mean loss over fixed batches."""
    fixed = list(batches)
    return lambda net: sum(float(loss(net(*x), y)) for x, y in fixed) / len(fixed)


def images(digits: common.Digits, build: Callable[[], nn.Module], size: int = 64) -> Data:
    """Images with labels; the score is the test error in percent."""
    whole = build is transformer.Transformer

    def inputs(x: Tensor) -> Inputs:
        return (x, torch.ones(len(x), x.shape[2], dtype=torch.bool)) if whole else (x,)

    def batch(random: Generator) -> Batch:
        rows = torch.randint(len(digits.train_y), (size,), generator=random)
        return inputs(digits.train_x[rows]), digits.train_y[rows]

    return Data(batch, common.error_percent(digits, inputs), build)


def mnist(build: Callable[[], nn.Module], size: int = 64) -> Data:
    digits = common.load_digits()
    if digits.name != "MNIST":
        raise FileNotFoundError("MNIST")
    return images(digits, build, size)


def fashion() -> common.Digits:
    if not FASHION.is_dir():
        raise FileNotFoundError("Fashion-MNIST (Debian package dataset-fashion-mnist)")
    return common._mnist(FASHION)


def clothes(blocks_each: int) -> Data:
    return images(fashion(), lambda: models.ResNet(blocks_each))


def autoencoder() -> Data:
    digits = fashion()

    def batch(random: Generator) -> Batch:
        x = digits.train_x[torch.randint(len(digits.train_y), (64,), generator=random)].flatten(1)
        return (x,), x

    def error(output: Tensor, target: Tensor) -> Tensor:
        return 1000 * nn.functional.mse_loss(output, target)

    widths = (784, 512, 256, 128, 32, 128, 256, 512, 784)
    test = [((x,), x) for x in digits.test_x.flatten(1).split(1000)]
    return Data(batch, mean_over(test, error), lambda: models.Chain(*widths, linear=(3,)))


def induction(length: int = 31, tokens: int = 24, size: int = 32) -> Data:
    """Random tokens that repeat after 7 to 14; the period has to be found. Two layers of attention can do so."""

    def batch(random: Generator, size: int = size) -> Batch:
        period = torch.randint(7, 15, (size, 1), generator=random)
        places = torch.arange(length + 1)[None]
        words = torch.gather(torch.randint(tokens, (size, 16), generator=random), 1, places % period)
        target = words[:, 1:].clone()
        target[places[:, 1:] < period + 2] = -100
        return (words[:, :-1],), target

    test = batch(Generator().manual_seed(5), 1024)
    return Data(batch, mean_over([test], next_token), lambda: models.GPT(tokens, length, 64, 4))


def shakespeare() -> language_model.Text:
    named = os.environ.get("DNI_FX_TEXT")
    path = Path(named) if named else language_model.found()
    if path is None:
        raise FileNotFoundError(language_model.TEXT)
    return language_model.read(path)


def long_text(tokens: int = 82) -> language_model.Text:
    """The most frequent bytes as numbers from 1; the others are 0."""
    if not LONG_TEXT.is_file():
        raise FileNotFoundError(f"{LONG_TEXT} (Debian package dict-gcide, or a text that DNI_FX_LONG_TEXT names)")
    raw = LONG_TEXT.read_bytes()
    raw = gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw
    text = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    number = torch.zeros(256, dtype=torch.uint8)
    frequent = text.bincount(minlength=256).argsort(descending=True, stable=True)[: tokens - 1]
    number[frequent] = torch.arange(1, tokens, dtype=torch.uint8)
    train, validation, test = number[text.int()].tensor_split([len(text) * 90 // 100, len(text) * 95 // 100])
    return language_model.Text(tokens, train, validation, test)


def characters(read: Callable[[], language_model.Text], length: int = 64, size: int = 24) -> Data:
    text = read()

    def windows(numbers: Tensor, random: Generator, size: int) -> Batch:
        starts = torch.randint(len(numbers) - length - 1, (size, 1), generator=random)
        rows = numbers[starts + torch.arange(length + 1)].long()
        return (rows[:, :-1],), rows[:, 1:]

    random = Generator().manual_seed(7)
    held_out = torch.cat([text.validation, text.test])
    test = [windows(held_out, random, 64) for _ in range(16)]
    net = functools.partial(models.GPT, text.characters, length, 96, 12)
    return Data(
        lambda random: windows(text.train, random, size), mean_over(test, next_token), lambda: net().scale_branches()
    )


def shapes(size: int = 16, side: int = 48, classes: int = 4) -> Data:
    """Discs, squares and crosses of any size and brightness on noise; the score is 100 less the mean IoU in percent."""

    def batch(random: Generator, size: int = size) -> Batch:
        x = torch.rand(size, side, side, generator=random) * 0.4
        y = torch.zeros(size, side, side, dtype=torch.long)
        axis = torch.arange(side).float()
        for _ in range(3):
            u = torch.rand(size, 5, generator=random)[:, :, None, None]
            radius, kind = 6 + 5 * u[:, 0], (u[:, 1] * 3).long()
            i = (axis[None, :, None] - (8 + 32 * u[:, 2])).abs()
            j = (axis[None, None, :] - (8 + 32 * u[:, 3])).abs()
            larger, smaller = torch.maximum(i, j), torch.minimum(i, j)
            cross = (smaller < 0.35 * radius) & (larger < radius)
            inside = torch.where(kind == 1, larger < 0.85 * radius, cross)
            inside = torch.where(kind == 0, i * i + j * j < radius * radius, inside)
            x, y = torch.where(inside, 0.4 + 0.6 * u[:, 4], x), torch.where(inside, kind + 1, y)
        return ((x + 0.1 * torch.randn(x.shape, generator=random))[:, None],), y

    random = Generator().manual_seed(9)
    test = [batch(random, 50) for _ in range(6)]

    def score(net: nn.Module) -> float:
        predicted = torch.cat([net(*x).argmax(1) for x, _ in test])
        target = torch.cat([y for _, y in test])
        pairs = [(predicted == c, target == c) for c in range(classes)]
        return 100 - 100 * float(sum((p & t).sum() / (p | t).sum() for p, t in pairs)) / classes

    return Data(batch, score, lambda: models.UNet(classes))


def teacher() -> Data:
    """A random function of 16 numbers; the score is the part of the variance that is missed, in percent."""
    random = Generator().manual_seed(0)
    weights = [torch.randn(16, 64, generator=random) / 4, torch.randn(64, 64, generator=random) / 4]
    last = torch.randn(64, 8, generator=random) / 8

    def function(x: Tensor) -> Tensor:
        for weight in weights:
            x = torch.sin(x @ weight)
        return torch.tanh(x @ last)

    def batch(random: Generator) -> Batch:
        x = torch.randn(128, 16, generator=random)
        return (x,), function(x)

    test = torch.randn(4000, 16, generator=random)
    wanted = function(test)
    variance = float(wanted.var(0).mean())

    def score(net: nn.Module) -> float:
        return 100 * float((net(test) - wanted).square().mean()) / variance

    return Data(batch, score, lambda: models.ResidualMLP(16, 96, 8, 6))


def random_images(blocks_each: int, size: int) -> Data:
    """Of the shape of CIFAR-10, for steps that are measured and not trained."""

    def batch(random: Generator) -> Batch:
        return (torch.randn(size, 3, 32, 32, generator=random),), torch.randint(10, (size,), generator=random)

    return Data(batch, lambda net: math.nan, lambda: models.ResNet(blocks_each, 3, stem_stride=1))


def random_tokens(tokens: int, length: int, size: int) -> Data:
    """For GPT-2 small (Radford et al. 2019), whose steps are measured and not trained; the head has its own weights."""

    def batch(random: Generator) -> Batch:
        words = torch.randint(tokens, (size, length + 1), generator=random)
        return (words[:, :-1],), words[:, 1:]

    return Data(batch, lambda net: math.nan, lambda: models.GPT(tokens, length, 768, 12, 12).scale_branches())
