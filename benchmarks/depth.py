"""What cuts cost as a net gets deeper: a cut after every layer, beside backprop.

Run:  python benchmarks/depth.py      writes benchmarks/results/depth.md

One thread. All nets take their steps in turn; ratios are to the backprop step of the same turn.
"""

import argparse
import itertools
import platform
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import memory
import runs
import torch
from torch import Tensor, nn

import dni_fx

RESULTS = Path(__file__).parent / "results" / "depth.md"
DEPTHS = (2, 4, 8, 16, 32)
Step = Callable[[], None]


def chain(layers: int, width: int) -> nn.Sequential:
    """Linear layers and ReLU; gradients neither vanish nor explode."""
    net = nn.Sequential(*itertools.chain.from_iterable((nn.Linear(width, width), nn.ReLU()) for _ in range(layers)))
    for layer in net[::2]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return net


def stepper(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Step:
    """One training step. Give an SGD optimizer: Adam is slow on the roots of zero gradients."""

    def step() -> None:
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()

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


WAYS: dict[str, Callable[[int, Tensor], Step]] = {
    "backprop again": backprop,
    "`zero`": lambda layers, x: rewritten(layers, x, "zero"),
    "`linear`": lambda layers, x: rewritten(layers, x, "linear"),
    "`dni_fx.DNI`": front_door,
}


def ratios(width: int, batch: int, count: int) -> Iterator[str]:
    """A table of steps beside backprop's."""
    x = torch.rand(batch, width)
    yield "| layers | backprop ms | " + " | ".join(WAYS) + " |"
    yield "|---|---|" + "---|" * len(WAYS)
    for layers in DEPTHS:
        torch.manual_seed(0)
        base, *others = runs.in_turn([backprop(layers, x), *(make(layers, x) for make in WAYS.values())], count)
        cells = [runs.ratio(times, base) for times in others]
        yield f"| {layers} | {statistics.median(base) * 1e3:.2f} | " + " | ".join(cells) + " |"


def transformer(count: int) -> Iterator[str]:
    """The 16 blocks of benchmarks/memory.py, whose layers compute much more than a synthesizer."""
    x = torch.randint(0, 64, (8, 128))
    ways = [(segments, kind) for segments in (2, 4, 16) for kind in ("zero", "linear")]
    nets, shares = [memory.Transformer()], [1.0]
    for segments, kind in ways:
        cuts = [f"blocks.{16 * i // segments - 1}" for i in range(1, segments)]
        nets.append(dni_fx.transform(memory.Transformer(), x, cuts=cuts, synthesizer=kind, verify=False).train())
        forecast = nets[-1].dni.plan.forecast
        shares.append(forecast.cut.step / forecast.backprop.step)
    steps = [stepper(net, torch.optim.SGD(net.parameters(), 1e-4, momentum=0.9), x) for net in nets]
    base, *others = runs.in_turn(steps, count)
    yield "| segments | synthesizer | FLOPs beside backprop's | time |"
    yield "|---|---|---|---|"
    for (segments, kind), share, times in zip(ways, shares[1:], others, strict=True):
        yield f"| {segments} | `{kind}` | {share:.3f} | {runs.ratio(times, base)} |"


def overhead(count: int) -> Iterator[str]:
    """Microseconds that a cut adds to a net with little to compute."""
    x = torch.rand(4, 8)
    kinds = ("zero", "linear")
    base, *others = runs.in_turn([backprop(33, x), *(rewritten(33, x, kind) for kind in kinds)], count)
    yield "| synthesizer | microseconds a cut |"
    yield "|---|---|"
    for kind, times in zip(kinds, others, strict=True):
        low, middle, high = statistics.quantiles([(t - b) / 32 * 1e6 for t, b in zip(times, base, strict=True)], n=4)
        yield f"| `{kind}` | {middle:.0f} ({low:.0f} to {high:.0f}) |"


def report(arguments: argparse.Namespace) -> Iterator[str]:
    torch.set_num_threads(1)
    # SGD leaves the first predictions below many cuts so small that every operation on them is slow.
    torch.set_flush_denormal(True)
    yield "# What cuts cost as a net gets deeper\n"
    yield f"`python benchmarks/depth.py --steps {arguments.steps}`, torch {torch.__version__}, {platform.machine()},"
    yield "one thread. Chains of linear layers and ReLU, SGD; a cut after every layer but the last. Time of a step"
    yield "beside backprop's of the same turn: median (10th to 90th percentile).\n"
    for width, batch in ((256, 256), (512, 256)):
        yield f"## {width} wide, batch {batch}\n"
        yield from ratios(width, batch, arguments.steps)
        yield ""
    yield "## A 16-block transformer, 8x128 tokens, as in memory.md\n"
    yield from transformer(arguments.steps)
    yield "\n## Nothing to compute: 33 layers, 8 wide, batch 4; quartiles\n"
    yield from overhead(4 * arguments.steps)
    yield ""


if __name__ == "__main__":
    runs.measure(__doc__, RESULTS, report, steps=50)
