"""What the examples share: real digits, one training loop, one table."""

import argparse
import gzip
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn


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
    """MNIST where it is found, else scikit-learn's bundled 8x8 digits; nothing is downloaded."""
    data = Path(os.environ.get("DNI_FX_DATA", "data"))
    shared = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist"
    for folder in (shared, data / "mnist", data, data / "MNIST" / "raw", Path("data/MNIST/raw")):
        if any((folder / f"train-images-idx3-ubyte{end}").is_file() for end in ("", ".gz")):
            return _mnist(folder)
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


def steps_asked_for(description: str, default: int) -> int:
    """Read `--steps`; one thread, since threads that wait for each other are far slower on a busy machine."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=default)
    torch.set_num_threads(1)
    steps: int = parser.parse_args().steps
    return steps


@dataclass(frozen=True)
class Result:
    """What a training run came to."""

    score: float
    milliseconds: float  # a step, median
    metrics: dict[str, dict[str, float]]


def train(
    net: nn.Module,
    steps: int,
    batch: Callable[[], tuple[tuple[Tensor, ...], Tensor, dict[str, Tensor]]],
    criterion: Callable[[Tensor, Tensor], Tensor],
    score: Callable[[nn.Module], float],
    name: str,
) -> Result:
    """The loop that people know. `batch` gives inputs, target, and what a decoupled net takes besides."""
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    decoupled = hasattr(net, "dni")
    net.train()
    seconds = []
    for _ in track(range(steps), name, console=Console(stderr=True)):
        inputs, target, context = batch()
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = criterion(net(*inputs, **(context if decoupled else {})), target)
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    net.eval()
    with torch.no_grad():
        return Result(score(net), statistics.median(seconds) * 1e3, net.dni.metrics() if decoupled else {})


def table(what: str, data: str, steps: int, size: int, results: dict[str, Result]) -> None:
    """Print backprop beside the rest."""
    shown = Table(title=f"{data}, {steps} steps of batch {size}", title_justify="left")
    for column in ("trained with", what, "ms a step", "ratio", "cosine of synthesizers with their targets"):
        shown.add_column(column)
    first = next(iter(results.values()))
    for name, result in results.items():
        cosines = ", ".join(f"{m['cosine']:.2f}" for m in result.metrics.values())
        ratio = f"{result.milliseconds / first.milliseconds:.2f}"
        shown.add_row(name, f"{result.score:.4g}", f"{result.milliseconds:.1f}", ratio, cosines)
    Console().print(shown)


def batches(x: Tensor, y: Tensor, size: int) -> Callable[[], tuple[tuple[Any, ...], Tensor, dict[str, Tensor]]]:
    """Random batches of images, labels, and the labels once more as the synthesizers' context."""

    def batch() -> tuple[tuple[Any, ...], Tensor, dict[str, Tensor]]:
        rows = torch.randint(len(y), (size,))
        return (x[rows],), y[rows], {"dni_context": y[rows]}

    return batch


def error_percent(digits: Digits) -> Callable[[nn.Module], float]:
    """Test error of a classifier in percent."""

    def score(net: nn.Module) -> float:
        wrong = [(net(x).argmax(1) != y).sum() for x, y in _chunks(digits)]
        return 100 * float(sum(wrong)) / len(digits.test_y)

    return score


def _chunks(digits: Digits) -> list[tuple[Tensor, Tensor]]:
    return list(zip(digits.test_x.split(1000), digits.test_y.split(1000), strict=True))
