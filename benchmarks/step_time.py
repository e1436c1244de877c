"""What a rewrite costs: the example MLP's step beside plain backprop; `net.dni.metrics()`; the command line's seconds.

Run:  python benchmarks/step_time.py
The steps of both are taken in turn, so that the machine's drift touches both alike; ratios are pair by pair.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from torch import nn

import dni_fx
from dni_fx.model.loading import load_target
from dni_fx.runtime import crossing

EXAMPLE = Path(__file__).parents[1] / "examples" / "mlp.py"


def stepper(net: nn.Module, conditioned: bool) -> Callable[[], float]:
    """A function that takes one training step on random digits, batch 256, and says how long it took."""
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    x, y = torch.rand(256, 1, 28, 28), torch.randint(0, 10, (256,))
    context = {"dni_context": y} if conditioned else {}

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x, **context), y).backward()
        optimizer.step()
        return time.perf_counter() - start

    return step


def spread(values: list[float], digits: int) -> str:
    low, middle, high = (statistics.quantiles(values, n=10)[i] for i in (0, 4, 8))
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


LABELLED = {"cuts": 4, "classes": 10}
LOSS = LABELLED | {"loss": "cross_entropy"}
REWRITES = {
    "cuts='auto'": {},
    "cuts='auto', classes=10": {"classes": 10},
    "cuts=4, classes=10": LABELLED,
    "the same, local_head": LOSS | {"synthesizer": "local_head"},
    "the same, guided_head": LOSS | {"synthesizer": "guided_head"},
    "the same, critic": LOSS | {"synthesizer": "critic"},
}


def steps(count: int) -> list[str]:
    rows = []
    for name, options in REWRITES.items():
        plain, _ = load_target(str(EXAMPLE))
        model, _ = load_target(str(EXAMPLE))
        net = dni_fx.transform(model, torch.rand(256, 1, 28, 28), **options)
        both = stepper(plain, False), stepper(net, "classes" in options)
        times = [[step() for step in both] for _ in range(count + 20)][20:]
        ratio = [t[1] / t[0] for t in times]
        backprop, ours = ([t[i] * 1e3 for t in times] for i in (0, 1))
        rows.append(
            f"| {name} | {len(net.dni.plan.segments)} | {spread(backprop, 2)} | {spread(ours, 2)} "
            f"| {spread(ratio, 2)} |"
        )
    return rows


def metrics(count: int) -> str:
    """What watching the synthesizers adds: steps that are looked at, in turn with steps that are not."""
    every = crossing.MEASURE_EVERY
    model, _ = load_target(str(EXAMPLE))
    step = stepper(dni_fx.transform(model, torch.rand(256, 1, 28, 28), cuts=4, classes=10), True)
    added = []
    for _ in range(count):
        with mock.patch.object(crossing, "MEASURE_EVERY", 1):
            looked_at = step()
        with mock.patch.object(crossing, "MEASURE_EVERY", sys.maxsize):
            added.append(looked_at / step() - 1)
    low, middle, high = statistics.quantiles(added, n=4)
    return (
        f"`net.dni.metrics()`, 4 segments: a look at the targets adds {100 * middle:.1f} % to its step (quartiles "
        f"{100 * low:.1f} and {100 * high:.1f} %, {count} pairs); one step in {every} is looked at, so "
        f"{100 * middle / every:.2f} % to all"
    )


def rewrites(count: int) -> str:
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(count):
            command = [sys.executable, "-m", "dni_fx.cli", "rewrite", str(EXAMPLE), "-o", f"{folder}/{i}"]
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds.append(time.perf_counter() - start)
    imports = []
    for _ in range(count):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        imports.append(time.perf_counter() - start)
    return (
        f"`dni-fx rewrite examples/mlp.py`: median {statistics.median(seconds):.1f} s ({min(seconds):.1f} to "
        f"{max(seconds):.1f}, {count} runs), of which `import torch` alone {statistics.median(imports):.1f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rewrites", type=int, default=5)
    arguments = parser.parse_args()
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, batch 256, 784-3x256-10"
    )
    print(f"{arguments.steps} steps of each in turn; median (10th to 90th percentile)\n")
    print("| rewritten with | segments | backprop ms | rewritten ms | ratio |")
    print("|---|---|---|---|---|")
    print("\n".join(steps(arguments.steps)), end="\n\n")
    print(metrics(5 * arguments.steps), end="\n\n")
    print(rewrites(arguments.rewrites))


if __name__ == "__main__":
    main()
