"""The tasks of benchmarks/learning.py: data, net, loss, score and cuts.

Real data come from where the examples find MNIST, `DNI_FX_TEXT` (a text file) and `DNI_FX_FASHION_MNIST` (a folder).
"""

import functools
import math
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import language_model
import learning_models as models
import torch
from torch import Generator, Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import common
import transformer

FASHION = Path(os.environ.get("DNI_FX_FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
Inputs = tuple[Tensor, ...]
Batch = tuple[Inputs, Tensor]  # inputs, target


@dataclass(frozen=True)
class Data:
    """Batches to train on, and a score: the lower, the better."""

    batch: Callable[[Generator], Batch]
    score: Callable[[nn.Module], float]
    build: Callable[[], nn.Module]


@dataclass(frozen=True)
class Task:
    """What is learnt, and how.

    Attributes:
        title: For the table.
        unit: Of the score.
        data: Reads the data; raises `FileNotFoundError`.
        loss: Of outputs and target; the exits end in it, too.
        cuts: Names of the modules that segments end with, by the number of segments.
        dni: Options of `dni_fx.transform` for the paper's synthesizers.
        classes: Number of labels; None: the target is no label, and there are no heads.
        checkpointed: Names of the modules that checkpointing computes again.
        schedule: A factor of the learning rate, of the step and the number of steps.
    """

    title: str
    unit: str
    data: Callable[[], Data]
    loss: Callable[[Tensor, Tensor], Tensor]
    cuts: dict[int, list[str]]
    steps: int
    lr: float
    dni: dict[str, Any]
    checkpointed: list[str]
    classes: int | None = None
    dense: bool = False
    weight_decay: float = 0.0
    schedule: Callable[[int, int], float] | None = None


def blocks(*after: int, of: str = "blocks") -> list[str]:
    return [f"{of}.{i}" for i in after]


def cosine(warm_up: int) -> Callable[[int, int], float]:
    """A linear rise, then a cosine down to a twentieth."""

    def factor(step: int, steps: int) -> float:
        return min(1, (step + 1) / warm_up) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))

    return factor


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target)


def next_token(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output.flatten(0, 1), target.flatten())


def mean_over(batches: Iterable[Batch], loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[nn.Module], float]:
    """A score: the mean loss over fixed batches."""
    fixed = list(batches)
    return lambda net: sum(float(loss(net(*x), y)) for x, y in fixed) / len(fixed)


# ------------------------------------------------------------------------------------------------ data
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


def characters(length: int = 64, size: int = 24) -> Data:
    named = os.environ.get("DNI_FX_TEXT")
    path = Path(named) if named else language_model.found()
    if path is None:
        raise FileNotFoundError(language_model.TEXT)
    text = language_model.read(path)

    def windows(numbers: Tensor, random: Generator, size: int) -> Batch:
        starts = torch.randint(len(numbers) - length - 1, (size, 1), generator=random)
        rows = numbers[starts + torch.arange(length + 1)]
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


# ------------------------------------------------------------------------------------------------ tasks
mse = nn.functional.mse_loss
CONV = {"synthesizer": "conv", "classes": 10}
LINEAR = {"synthesizer": "linear", "classes": 10}
TASKS = {
    "induction": Task(
        "Induction, 4-block transformer",
        "nats",
        induction,
        next_token,
        {2: blocks(1), 4: blocks(0, 1, 2)},
        1000,
        2e-3,
        {"synthesizer": "linear", "classes": 24},
        blocks(*range(4)),
        24,
        schedule=cosine(50),
    ),
    "digits_transformer": Task(
        "MNIST, 3-block transformer",
        "% wrong",
        functools.partial(mnist, transformer.Transformer),
        cross_entropy,
        {2: blocks(1), 4: blocks(0, 1, 2), 5: [*blocks(0, 1, 2), "neck"]},
        600,
        1e-3,
        LINEAR,
        blocks(*range(3)),
        10,
    ),
    "gpt": Task(
        "Shakespeare's characters, 12-block transformer",
        "nats",
        characters,
        next_token,
        {2: blocks(5), 4: blocks(2, 5, 8), 12: blocks(*range(11))},
        500,
        2e-3,
        {"synthesizer": "linear", "classes": 65},
        blocks(*range(12)),
        65,
        weight_decay=0.1,
        schedule=cosine(100),
    ),
    "resnet20": Task(
        "Fashion-MNIST, ResNet-20",
        "% wrong",
        functools.partial(clothes, 3),
        cross_entropy,
        {2: blocks(4), 4: blocks(2, 4, 6)},
        250,
        2e-3,
        CONV,
        blocks(*range(9)),
        10,
        schedule=cosine(50),
    ),
    "resnet32": Task(
        "Fashion-MNIST, ResNet-32",
        "% wrong",
        functools.partial(clothes, 5),
        cross_entropy,
        {2: blocks(7), 4: blocks(3, 7, 11)},
        600,
        2e-3,
        CONV,
        blocks(*range(15)),
        10,
        schedule=cosine(50),
    ),
    "shapes": Task(
        "Shapes on noise, U-Net",
        "100 - mIoU",
        shapes,
        cross_entropy,
        {2: ["bottom"], 4: ["down.1", "bottom", "up.1"]},
        1000,
        4e-3,
        {"synthesizer": "conv", "classes": 4},
        [*blocks(0, 1, 2, of="down"), "bottom", *blocks(0, 1, 2, of="up")],
        4,
        dense=True,
        schedule=cosine(50),
    ),
    "teacher": Task(
        "A random function, residual MLP of 6 blocks",
        "% of variance",
        teacher,
        mse,
        {2: blocks(2), 3: blocks(1, 3), 4: blocks(1, 2, 4), 7: blocks(*range(6))},
        800,
        2e-3,
        {"synthesizer": "linear", "context_size": 8},
        blocks(*range(6)),
        schedule=cosine(50),
    ),
    "autoencoder": Task(
        "Fashion-MNIST, autoencoder",
        "1000 x MSE",
        autoencoder,
        mse,
        {2: blocks(3), 4: blocks(1, 3, 5), 8: blocks(*range(7))},
        600,
        1e-3,
        {"synthesizer": "linear", "context_size": 784},
        blocks(*range(7)),
        schedule=cosine(50),
    ),
    "digits_mlp": Task(
        "MNIST, 3 hidden layers of 256",
        "% wrong",
        functools.partial(mnist, functools.partial(models.Chain, 784, 256, 256, 256, 10), 256),
        cross_entropy,
        {2: blocks(1), 4: blocks(0, 1, 2)},
        2000,
        1e-3,
        LINEAR,
        blocks(*range(3)),
        10,
    ),
}
