"""Shared by the examples: real digits, one training loop, one table."""

import argparse
import gzip
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import dni_fx

Inputs = tuple[Tensor, ...]
Batch = tuple[Inputs, Tensor, dict[str, Tensor]]  # inputs, target, arguments for a decoupled net alone


@dataclass(frozen=True)
class Digits:
    """Images (N, 1, H, W) in [0, 1] and labels (N,)."""

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    @property
    def side(self) -> int:
        return self.train_x.shape[-1]


def load_digits() -> Digits:
    """MNIST if its files are there, else scikit-learn's bundled 8x8 digits; nothing is downloaded."""
    data = Path(os.environ.get("DNI_FX_DATA", "data"))
    shared = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist"
    for folder in (shared, data / "mnist", data, data / "MNIST" / "raw", Path("data/MNIST/raw")):
        if any((folder / f"train-images-idx3-ubyte{end}").is_file() for end in ("", ".gz")):
            return _mnist(folder)
    return bundled_digits()


def bundled_digits() -> Digits:
    """The 8x8 digits that scikit-learn bundles."""
    from sklearn.datasets import load_digits as bundled

    digits = bundled()
    x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    y = torch.tensor(digits.target)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    train, test = order[360:], order[:360]
    return Digits("scikit-learn's 8x8 digits", x[train], y[train], x[test], y[test])


def _mnist(folder: Path) -> Digits:
    def read(name: str) -> Tensor:
        path = folder / name
        raw = path.read_bytes() if path.is_file() else gzip.decompress((folder / f"{name}.gz").read_bytes())
        axes = raw[3]
        shape = np.frombuffer(raw, ">i4", count=axes, offset=4)
        return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape).copy())

    train_x, test_x = (read(f"{part}-images-idx3-ubyte").unsqueeze(1).float() / 255 for part in ("train", "t10k"))
    train_y, test_y = (read(f"{part}-labels-idx1-ubyte").long() for part in ("train", "t10k"))
    return Digits("MNIST", train_x, train_y, test_x, test_y)


def set_up(description: str | None, steps: int) -> tuple[int, Digits]:
    """Read `--steps`, load the digits, and use one thread: more are far slower on a busy machine."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=steps, help="training steps of each net (default: %(default)s)")
    torch.set_num_threads(1)
    return parser.parse_args().steps, load_digits()


@dataclass(frozen=True)
class Task:
    """What a net is trained on, how it is scored, and how it is cut."""

    data: str
    size: int  # of a batch
    batch: Callable[[], Batch]
    criterion: Callable[[Tensor, Tensor], Tensor]
    measure: str  # the name of the score
    score: Callable[[nn.Module], float]
    options: dict[str, Any] = field(default_factory=dict)  # of dni_fx.transform


def classification(
    digits: Digits, size: int, inputs: Callable[[Tensor], Inputs] = lambda x: (x,), **options: Any
) -> Task:
    """Digits with labels, which are the synthesizers' context too; `inputs` makes a net's arguments of images."""

    def batch() -> Batch:
        rows = torch.randint(len(digits.train_y), (size,))
        x, y = digits.train_x[rows], digits.train_y[rows]
        return inputs(x), y, {"dni_context": y}

    criterion, score = nn.functional.cross_entropy, error_percent(digits, inputs)
    return Task(digits.name, size, batch, criterion, "test error %", score, {"classes": 10} | options)


def error_percent(digits: Digits, inputs: Callable[[Tensor], Inputs] = lambda x: (x,)) -> Callable[[nn.Module], float]:
    """Test error of a classifier in percent."""

    def score(net: nn.Module) -> float:
        chunks = zip(digits.test_x.split(1000), digits.test_y.split(1000), strict=True)
        wrong = [(net(*inputs(x)).argmax(1) != y).sum() for x, y in chunks]
        return 100 * float(sum(wrong)) / len(digits.test_y)

    return score


def run(build: Callable[[], nn.Module], task: Task, steps: int) -> None:
    """Train the same net by backprop and decoupled, and print both."""
    results = {}
    for name in ("backprop", "decoupled"):
        torch.manual_seed(0)
        net = build()
        if name == "decoupled":
            net = dni_fx.transform(net, task.batch()[0], **task.options)
        results[name] = train(net, task, steps, name)
    print_table(task, steps, results)


@dataclass(frozen=True)
class Result:
    """A trained net's score, time and metrics."""

    score: float
    milliseconds: float  # a step, median
    metrics: dict[str, dict[str, float]]


def train(net: nn.Module, task: Task, steps: int, name: str) -> Result:
    """Train by the ordinary loop: a decoupled net needs no other."""
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    decoupled = hasattr(net, "dni")
    net.train()
    seconds = []
    for _ in track(range(steps), name, console=Console(stderr=True)):
        inputs, target, context = task.batch()
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = task.criterion(net(*inputs, **(context if decoupled else {})), target)
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    net.eval()
    torch.manual_seed(2)  # the same noise for every net
    with torch.no_grad():
        return Result(task.score(net), statistics.median(seconds) * 1e3, net.dni.metrics() if decoupled else {})


def print_table(task: Task, steps: int, results: dict[str, Result]) -> None:
    """Print a row for each net; the ratio is to the first."""
    shown = Table(title=f"{task.data}, {steps} steps of batch {task.size}", title_justify="left")
    for column in ("trained with", task.measure, "ms a step", "ratio", "cosine of synthesizers with their targets"):
        shown.add_column(column)
    first = next(iter(results.values()))
    for name, result in results.items():
        cosines = ", ".join(f"{m['cosine']:.2f}" for m in result.metrics.values())
        ratio = f"{result.milliseconds / first.milliseconds:.2f}"
        shown.add_row(name, f"{result.score:.4g}", f"{result.milliseconds:.1f}", ratio, cosines)
    Console().print(shown)
