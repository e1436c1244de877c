"""How far off the cost model is: predicted memory and time of a training step beside measured ones.

Run:  python benchmarks/cost_model.py          writes benchmarks/results/cost_model.md

Memory is measured exactly, operation by operation (`dni_fx/bench/live_bytes.py`): all tensors that a step makes, not
the parameters, optimizer state and batch, whose sizes are known. Times are medians of steps taken in turn, as a ratio
to backprop's.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import runs
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import dni_fx
from dni_fx.bench.live_bytes import training_peak
from dni_fx.errors import DniFxError
from dni_fx.model.inputs import tensors_in

RESULTS = Path(__file__).parent / "results" / "cost_model.md"
sys.path.append(str(Path(__file__).parents[1] / "examples"))
EXAMPLES = ("mlp", "cnn", "resnet", "transformer", "unet")


class Block(nn.Module):
    """A pre-norm transformer block, d 128, 4 heads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(128), nn.LayerNorm(128)
        self.qkv, self.out = nn.Linear(128, 384), nn.Linear(128, 128)
        self.mlp = nn.Sequential(nn.Linear(128, 512), nn.GELU(), nn.Linear(512, 128))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.first(x)).view(x.size(0), x.size(1), 3, 4, 32).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        return x + self.mlp(self.second(x))


class Recurrent(nn.Module):
    """Two LSTM layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.LSTM(128, 128, batch_first=True) for _ in range(2))
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)[0])[0][:, -1])


def models() -> Iterator[tuple[str, Callable[[], nn.Module], Callable[[], Any]]]:
    """Name, model and example inputs."""
    for name in EXAMPLES:
        module = __import__(name)
        yield f"examples/{name}", module.build_model, module.example_inputs
    yield "16-block transformer", lambda: nn.Sequential(*[Block() for _ in range(16)]), lambda: torch.rand(8, 128, 128)
    yield "2-layer LSTM", Recurrent, lambda: torch.rand(16, 32, 128)
    yield "4-layer TransformerEncoder", _encoder, lambda: torch.rand(8, 64, 64)


def _encoder() -> nn.Module:
    layers = [nn.TransformerEncoderLayer(64, 4, 256, batch_first=True) for _ in range(4)]
    return nn.Sequential(*layers, nn.Linear(64, 10))


@dataclass
class Step:
    """One training step of a net."""

    net: nn.Module
    args: tuple[Any, ...]

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(self.net.parameters())
        torch.manual_seed(0)
        out = self.net(*self.args)
        self.target = torch.randint(out.shape[1], (len(out),)) if out.dim() == 2 else torch.rand_like(out)
        self()
        self()

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy if self.target.dtype == torch.int64 else nn.functional.mse_loss
        loss(self.net(*self.args), self.target).backward()
        self.optimizer.step()

    def peak(self) -> int:
        self.optimizer.zero_grad()
        return training_peak(self, self.net.parameters()).peak


def backward_flops(net: nn.Module, args: tuple[Any, ...]) -> tuple[int, int]:
    """FLOPs of matrix products and convolutions, forward and backward, as torch counts them."""
    with FlopCounterMode(display=False) as forward:
        outputs = tensors_in(net(*args))
    with FlopCounterMode(display=False) as backward:
        sum(o.sum() for o in outputs).backward()  # type: ignore[union-attr]
    return forward.get_total_flops(), backward.get_total_flops()


def rows(name: str, build: Callable[[], nn.Module], example: Any, steps: int) -> Iterator[tuple[str, float]]:
    """A row for each number of segments, and by what percentage its memory is off."""
    args = example if isinstance(example, tuple) else (example,)
    torch.manual_seed(0)
    plain = Step(build(), args)
    for segments in (1, 2, 3, 4):
        torch.manual_seed(0)
        try:
            net = dni_fx.transform(build(), example, cuts=max(2, segments), synthesizer_share=9.0, profile=True)
        except DniFxError:
            continue
        forecast = net.dni.plan.forecast
        assert forecast is not None
        outlook = forecast.backprop if segments == 1 else forecast.cut
        static = 0 if segments == 1 else forecast.synthesizer_bytes
        predicted = outlook.peak_bytes - forecast.resident_bytes - static
        step = plain if segments == 1 else Step(net, args)
        measured = step.peak()
        off = 100 * (predicted / measured - 1)
        base, times = runs.in_turn([plain, step], steps)
        cells = [
            name,
            str(segments),
            f"{predicted / 2**20:.2f}",
            f"{measured / 2**20:.2f}",
            f"{off:+.1f} %",
            f"{outlook.step / forecast.backprop.step:.2f}",
            runs.ratio(times, base),
        ]
        yield "| " + " | ".join(cells) + " |", off


def flops(name: str, build: Callable[[], nn.Module], example: Any) -> str:
    plan = dni_fx.plan(build(), example, cuts=2)
    forward, backward = backward_flops(build(), example if isinstance(example, tuple) else (example,))
    ruled = sum(s.backward for s in plan.segments)
    return f"| {name} | {forward:.4g} | {ruled:.4g} | {backward:.4g} ({100 * (ruled / backward - 1):+.1f} %) |"


def report(arguments: argparse.Namespace) -> Iterator[str]:
    steps, threads = arguments.steps, torch.get_num_threads()
    yield "# Cost model\n"
    yield f"`python benchmarks/cost_model.py --steps {steps}`, torch {torch.__version__}, {threads} threads, CPU.\n"
    yield '`unlock="backward"`, default synthesizers, no labels, Adam. Memory in MiB: the peak of all that a step'
    yield "makes, the optimizer's temporaries too. Time as a ratio to backprop's step: predicted from `--profile`;"
    yield f"measured: median of {steps} pairs (10th to 90th percentile).\n"
    yield "| model | segments | predicted | measured | off | time predicted | time measured |"
    yield "|---|---|---|---|---|---|---|"
    worst = 0.0
    for name, build, example in models():
        for row, off in rows(name, build, example(), steps):
            worst = max(worst, abs(off))
            yield row
    yield f"\nMemory is off by {worst:.1f} % at most.\n"
    yield "FLOPs of the backward pass: rule beside count.\n"
    yield "| model | forward | backward by rule | backward counted |"
    yield "|---|---|---|---|"
    # torch does not count an LSTM
    yield from (flops(name, build, example()) for name, build, example in models() if "LSTM" not in name)


if __name__ == "__main__":
    runs.measure(__doc__, RESULTS, report, steps=30)
