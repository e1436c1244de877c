"""The tasks of benchmarks/learning.py: what is learnt, and how."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import learning_data
import learning_glyphs
import learning_models as models
import transformer
from torch import Tensor, nn


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
        trains: False: only steps are measured.
    """

    title: str
    unit: str
    data: Callable[[], learning_data.Data]
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
    trains: bool = True

    @property
    def shown(self) -> int:
        """The number of segments in the first table, and of the control."""
        return 4 if 4 in self.cuts else max(self.cuts)


def blocks(*after: int, of: str = "blocks") -> list[str]:
    return [f"{of}.{i}" for i in after]


def cosine(warm_up: int) -> Callable[[int, int], float]:
    """A linear rise, then a cosine down to a twentieth."""

    def factor(step: int, steps: int) -> float:
        return min(1, (step + 1) / warm_up) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))

    return factor


mse = nn.functional.mse_loss
CONV = {"synthesizer": "conv", "classes": 10}
LINEAR = {"synthesizer": "linear", "classes": 10}
TASKS = {
    "induction": Task(
        "Induction, 4-block transformer",
        "nats",
        learning_data.induction,
        learning_data.next_token,
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
        functools.partial(learning_data.mnist, transformer.Transformer),
        learning_data.cross_entropy,
        {2: blocks(1), 5: [*blocks(0, 1, 2), "neck"]},
        600,
        1e-3,
        LINEAR,
        blocks(*range(3)),
        10,
    ),
    "gpt": Task(
        "Shakespeare's characters, 12-block transformer",
        "nats",
        functools.partial(learning_data.characters, learning_data.shakespeare),
        learning_data.next_token,
        {2: blocks(5), 4: blocks(2, 5, 8), 12: blocks(*range(11))},
        500,
        2e-3,
        {"synthesizer": "linear", "classes": 65},
        blocks(*range(12)),
        65,
        weight_decay=0.1,
        schedule=cosine(100),
    ),
    "long_text": Task(
        "A dictionary's characters, 12-block transformer",
        "nats",
        functools.partial(learning_data.characters, learning_data.long_text),
        learning_data.next_token,
        {2: blocks(5), 4: blocks(2, 5, 8)},
        1500,
        2e-3,
        {"synthesizer": "linear", "classes": 82},
        blocks(*range(12)),
        82,
        weight_decay=0.1,
        schedule=cosine(100),
    ),
    "resnet20": Task(
        "Fashion-MNIST, ResNet-20",
        "% wrong",
        functools.partial(learning_data.clothes, 3),
        learning_data.cross_entropy,
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
        functools.partial(learning_data.clothes, 5),
        learning_data.cross_entropy,
        {2: blocks(7), 4: blocks(3, 7, 11)},
        600,
        2e-3,
        CONV,
        blocks(*range(15)),
        10,
        schedule=cosine(50),
    ),
    "glyphs": Task(
        "Letters of unseen fonts on clutter, ResNet-32",
        "% wrong",
        learning_glyphs.data,
        learning_data.cross_entropy,
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
        learning_data.shapes,
        learning_data.cross_entropy,
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
        learning_data.teacher,
        mse,
        {2: blocks(2), 4: blocks(1, 2, 4), 7: blocks(*range(6))},
        800,
        8e-3,
        {"synthesizer": "linear", "context_size": 8},
        blocks(*range(6)),
        schedule=cosine(50),
    ),
    "autoencoder": Task(
        "Fashion-MNIST, autoencoder",
        "1000 x MSE",
        learning_data.autoencoder,
        mse,
        {2: blocks(3), 4: blocks(1, 3, 5), 8: blocks(*range(7))},
        600,
        4e-3,
        {"synthesizer": "linear", "context_size": 784},
        blocks(*range(7)),
        schedule=cosine(50),
    ),
    "digits_mlp": Task(
        "MNIST, 3 hidden layers of 256",
        "% wrong",
        functools.partial(learning_data.mnist, functools.partial(models.Chain, 784, 256, 256, 256, 10), 256),
        learning_data.cross_entropy,
        {2: blocks(1), 4: blocks(0, 1, 2)},
        2000,
        1e-3,
        LINEAR,
        blocks(*range(3)),
        10,
    ),
    "resnet110": Task(
        "Random images of 32 x 32, ResNet-110",
        "",
        functools.partial(learning_data.random_images, 18, 32),
        learning_data.cross_entropy,
        {2: blocks(26), 4: blocks(12, 26, 40)},
        0,
        1e-3,
        {},
        blocks(*range(54)),
        10,
        trains=False,
    ),
    "gpt2_small": Task(
        "Random tokens, GPT-2 small",
        "",
        functools.partial(learning_data.random_tokens, 50257, 128, 1),
        learning_data.next_token,
        {2: blocks(5), 4: blocks(2, 5, 8)},
        0,
        1e-4,
        {},
        blocks(*range(12)),
        50257,
        trains=False,
    ),
}
