"""What cuts cost as a net gets deeper: a cut after every layer, beside backprop.

Run:  python benchmarks/depth.py      writes benchmarks/results/depth.md
One thread. The steps of all are taken in turn; ratios are to the backprop step of the same turn.
"""

import argparse
import itertools
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

import dni_fx

sys.path.insert(0, str(Path(__file__).parent))
import memory

RESULTS = Path(__file__).parent / "results" / "depth.md"
DEPTHS = (2, 4, 8, 16, 32)
WARM_UP = 10
Step = Callable[[], float]


def chain(layers: int, width: int) -> nn.Sequential:
    """Linear and ReLU, so many times; gradients neither vanish nor explode."""
    net = nn.Sequential(*itertools.chain.from_iterable((nn.Linear(width, width), nn.ReLU()) for _ in range(layers)))
    for layer in net[::2]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return net


def stepper(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Step:
    """One training step, and the seconds that it took; by SGD, for Adam takes long for the roots of zero gradients."""

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
        return time.perf_counter() - start

    return step


def backprop(layers: int, x: Tensor) -> Step:
    net = chain(layers, x.shape[1])
    return stepper(net, torch.optim.SGD(net.parameters(), 1e-4, momentum=0.9), x)


def rewritten(layers: int, x: Tensor, synthesizer: str) -> Step:
    net = chain(layers, x.shape[1])
    cuts = [str(2 * i + 1) for i in range(layers - 1)]  # after each ReLU but the last
    net = dni_fx.transform(net, x, cuts=cuts, synthesizer=synthesizer, verify=False).train()
    return stepper(net, torch.optim.SGD(net.parameters(), 1e-4, momentum=0.9), x)


def front_door(layers: int, x: Tensor) -> Step:
    net = chain(layers, x.shape[1])
    optimizer = torch.optim.SGD(net.parameters(), 1e-4, momentum=0.9)
    return stepper(dni_fx.DNI(net, optim=optimizer).train(), optimizer, x)


def in_turn(steps: list[Step], count: int) -> list[list[float]]:
    """Seconds of each, `count` times."""
    for _ in range(WARM_UP):
        for step in steps:
            step()
    return list(zip(*[[step() for step in steps] for _ in range(count)], strict=True))


def ratio(times: list[float], base: list[float]) -> str:
    values = [t / b for t, b in zip(times, base, strict=True)]
    low, middle, high = (statistics.quantiles(values, n=10)[i] for i in (0, 4, 8))
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


WAYS: dict[str, Callable[[int, Tensor], Step]] = {
    "backprop again": backprop,
    "`zero`": lambda layers, x: rewritten(layers, x, "zero"),
    "`linear`": lambda layers, x: rewritten(layers, x, "linear"),
    "`dni_fx.DNI`": front_door,
}


def ratios(width: int, batch: int, count: int) -> list[str]:
    """A table of steps beside backprop's."""
    x = torch.rand(batch, width)
    lines = ["| layers | backprop ms | " + " | ".join(WAYS) + " |", "|---|---|" + "---|" * len(WAYS)]
    for layers in track(DEPTHS, f"width {width}, batch {batch}", console=Console(stderr=True)):
        torch.manual_seed(0)
        base, *others = in_turn([backprop(layers, x), *(make(layers, x) for make in WAYS.values())], count)
        cells = [ratio(times, base) for times in others]
        lines.append(f"| {layers} | {statistics.median(base) * 1e3:.2f} | " + " | ".join(cells) + " |")
    return lines


def transformer(count: int) -> list[str]:
    """The 16 blocks of benchmarks/memory.py: where a layer has something to compute."""
    x = torch.randint(0, 64, (8, 128))
    lines = ["| segments | synthesizer | FLOPs beside backprop's | time |", "|---|---|---|---|"]
    ways = [(segments, kind) for segments in (2, 4, 16) for kind in ("zero", "linear")]
    nets, shares = [memory.Transformer()], [1.0]
    for segments, kind in ways:
        cuts = [f"blocks.{16 * i // segments - 1}" for i in range(1, segments)]
        nets.append(dni_fx.transform(memory.Transformer(), x, cuts=cuts, synthesizer=kind, verify=False).train())
        forecast = nets[-1].dni.plan.forecast
        shares.append(forecast.cut.step / forecast.backprop.step)
    steps = [stepper(net, torch.optim.SGD(net.parameters(), 1e-4, momentum=0.9), x) for net in nets]
    base, *others = in_turn(steps, count)
    for (segments, kind), share, times in zip(ways, shares[1:], others, strict=True):
        lines.append(f"| {segments} | `{kind}` | {share:.3f} | {ratio(times, base)} |")
    return lines


def overhead(count: int) -> list[str]:
    """Microseconds that a cut adds where there is next to nothing to compute."""
    x = torch.rand(4, 8)
    ways = {"`zero`": "zero", "`linear`": "linear"}
    base, *others = in_turn([backprop(33, x), *(rewritten(33, x, kind) for kind in ways.values())], count)
    lines = ["| synthesizer | microseconds a cut |", "|---|---|"]
    for name, times in zip(ways, others, strict=True):
        low, middle, high = statistics.quantiles([(t - b) / 32 * 1e6 for t, b in zip(times, base, strict=True)], n=4)
        lines.append(f"| {name} | {middle:.0f} ({low:.0f} to {high:.0f}) |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # SGD leaves the first predictions below many cuts so small that every operation on them is slow.
    torch.set_flush_denormal(True)
    text = [
        "# What cuts cost as a net gets deeper",
        "",
        f"`python benchmarks/depth.py --steps {arguments.steps}`, torch {torch.__version__}, {platform.machine()}, one "
        "thread. Chains of linear layers and",
        "ReLU, SGD; a cut after every layer but the last. Time of a step beside",
        "backprop's of the same turn: median (10th to 90th percentile).",
        "",
    ]
    for width, batch in ((256, 256), (512, 256)):
        text += [f"## {width} wide, batch {batch}", "", *ratios(width, batch, arguments.steps), ""]
    text += ["## A 16-block transformer, 8x128 tokens, as in memory.md", "", *transformer(arguments.steps), ""]
    text += ["## Nothing to compute: 33 layers, 8 wide, batch 4; quartiles", "", *overhead(4 * arguments.steps), ""]
    notes = RESULTS.with_suffix(".notes.md")
    RESULTS.write_text("\n".join(text) + (notes.read_text() if notes.is_file() else ""))
    print("\n".join(text))


if __name__ == "__main__":
    main()
