"""What a rewrite costs: the example MLP's step beside plain backprop; `net.dni.metrics()`; the command line's seconds.

Run:  python benchmarks/step_time.py      writes benchmarks/results/step_time.md

Both nets take their steps in turn; ratios are pair by pair.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import runs
import torch
from torch import nn

import dni_fx
from dni_fx.model.loading import load_target
from dni_fx.runtime import crossing

RESULTS = Path(__file__).parent / "results" / "step_time.md"
EXAMPLE = Path(__file__).parents[1] / "examples" / "mlp.py"


def stepper(net: nn.Module, conditioned: bool = False) -> Callable[[], None]:
    """One training step on random digits, batch 256."""
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    x, y = torch.rand(256, 1, 28, 28), torch.randint(0, 10, (256,))
    context = {"dni_context": y} if conditioned else {}

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x, **context), y).backward()
        optimizer.step()

    return step


LABELLED = {"cuts": 4, "classes": 10}
REWRITES: dict[str, dict[str, Any]] = {
    "cuts=2": {"cuts": 2},
    "cuts=2, classes=10": {"cuts": 2, "classes": 10},
    "cuts=4, classes=10": LABELLED,
    "the same, guided_head": LABELLED | {"loss": "cross_entropy", "synthesizer": "guided_head"},
}


def rewritten(options: dict[str, Any]) -> nn.Module:
    model, _ = load_target(str(EXAMPLE))
    return dni_fx.transform(model, torch.rand(256, 1, 28, 28), **options)


def steps(count: int) -> Iterator[str]:
    """A table of steps beside backprop's."""
    yield "| rewritten with | segments | backprop ms | rewritten ms | ratio |"
    yield "|---|---|---|---|---|"
    for name, options in REWRITES.items():
        plain, _ = load_target(str(EXAMPLE))
        net = rewritten(options)
        base, times = runs.in_turn([stepper(plain), stepper(net, "classes" in options)], count)
        cells = [*(runs.spread(1e3 * t for t in column) for column in (base, times)), runs.ratio(times, base)]
        yield f"| {name} | {len(net.dni.plan.segments)} | " + " | ".join(cells) + " |"


def metrics(count: int) -> str:
    """What the synthesizers' metrics add: measured steps in turn with unmeasured ones."""
    every = crossing.MEASURE_EVERY
    step = stepper(rewritten(LABELLED), True)
    measured = mock.patch.object(crossing, "MEASURE_EVERY", 1)(step)
    unmeasured = mock.patch.object(crossing, "MEASURE_EVERY", sys.maxsize)(step)
    pairs = zip(*runs.in_turn([measured, unmeasured], count), strict=True)
    added = [with_metrics / without - 1 for with_metrics, without in pairs]
    low, middle, high = (100 * q for q in statistics.quantiles(added, n=4))
    return (
        f"`net.dni.metrics()`, 4 segments: measuring adds {middle:.1f} % to a step (quartiles {low:.1f} and {high:.1f} "
        f"%, {count} pairs); one step in {every} is measured, so {middle / every:.2f} % to all"
    )


def rewrites(count: int) -> str:
    """How long the command line needs."""

    def run(*arguments: str) -> float:
        command = [sys.executable, *arguments]
        return runs.timed(lambda: subprocess.run(command, check=True, capture_output=True))[0]

    with tempfile.TemporaryDirectory() as folder:
        rewrite = "-m", "dni_fx.cli", "rewrite", str(EXAMPLE), "--cuts", "2"
        seconds = [run(*rewrite, "-o", f"{folder}/{i}") for i in range(count)]
    imports = [run("-c", "import torch") for _ in range(count)]
    return (
        f"`dni-fx rewrite examples/mlp.py --cuts 2`: median {statistics.median(seconds):.1f} s ({min(seconds):.1f} to "
        f"{max(seconds):.1f}, {count} runs), of which `import torch` alone {statistics.median(imports):.1f} s"
    )


def report(arguments: argparse.Namespace) -> Iterator[str]:
    yield "# What a rewrite costs\n"
    yield f"`python benchmarks/step_time.py --steps {arguments.steps}`\n"
    yield f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, batch 256, 784-3x256-10"
    yield f"{arguments.steps} steps of each in turn; median (10th to 90th percentile)\n"
    yield from steps(arguments.steps)
    yield "\n" + metrics(5 * arguments.steps)
    yield "\n" + rewrites(arguments.rewrites)


if __name__ == "__main__":
    runs.measure(__doc__, RESULTS, report, steps=300, rewrites=5)
