"""Which synthesizer suits which network: the example CNN, ResNet and transformer on digits, cut early and often.

Run:  python benchmarks/synthesizers_by_net.py      writes benchmarks/results/synthesizers_by_net.md

Adam 1e-3 for everything. What `synthesizer="auto"` picks is decided here and in paper_feedforward.py.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import runs
import torch
from torch import Tensor, nn

import dni_fx

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import cnn
import common
import resnet
import transformer

RESULTS = Path(__file__).parent / "results" / "synthesizers_by_net.md"
CUTS: dict[type[nn.Module], list[str]] = {
    cnn.CNN: ["features.3", "features.7", "hidden"],
    resnet.ResNet: ["stem", "blocks.0", "blocks.1", "neck"],
    transformer.Transformer: ["blocks.0", "blocks.1", "blocks.2", "neck"],
}
BATCH = 64
LABELS = {"classes": 10}
LOSS = LABELS | {"loss": "cross_entropy"}
SYNTHESIZERS: dict[str, dict[str, Any] | None] = {
    "backprop": None,
    "no labels, scale=1": {"training": dni_fx.Training(scale=1.0)},
    "no labels, scale=1/16": {"training": dni_fx.Training(scale=1 / 16)},
    "no labels, scale=1/64": {"training": dni_fx.Training(scale=1 / 64)},
    "conv or linear": LABELS,
    "conv or linear, warmup=100": LABELS | {"training": dni_fx.Training(warmup=100)},
    "guided_head": LOSS | {"synthesizer": "guided_head"},
    "auto with a loss": LOSS,
}


def inputs(kind: type[nn.Module], x: Tensor) -> tuple[Tensor, ...]:
    return (x, torch.ones(len(x), x.shape[2], dtype=torch.bool)) if kind is transformer.Transformer else (x,)


def error(job: tuple[type[nn.Module], str, int, int]) -> float:
    """Test error in percent."""
    kind, name, seed, steps = job
    digits = common.load_digits()
    torch.manual_seed(seed)
    net = kind()
    options = SYNTHESIZERS[name]
    if options is not None:
        net = dni_fx.transform(net, inputs(kind, digits.train_x[:BATCH]), cuts=CUTS[kind], **options)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    torch.manual_seed(seed + 100)
    for _ in range(steps):
        rows = torch.randint(len(digits.train_y), (BATCH,))
        x, y = digits.train_x[rows], digits.train_y[rows]
        optimizer.zero_grad()
        context = {"dni_context": y} if options and "classes" in options else {}
        nn.functional.cross_entropy(net(*inputs(kind, x), **context), y).backward()
        optimizer.step()
    net.eval()
    with torch.no_grad():
        outputs = torch.cat([net(*inputs(kind, x)) for x in digits.test_x.split(1000)])
    return 100 * float((outputs.argmax(1) != digits.test_y).float().mean())


def report(arguments: argparse.Namespace) -> Iterator[str]:
    found = runs.errors_by_setting(error, itertools.product(CUTS, SYNTHESIZERS), arguments)
    yield "# Synthesizers by network\n"
    yield f"`python benchmarks/synthesizers_by_net.py --steps {arguments.steps} --seeds {arguments.seeds}`, torch"
    yield f"{torch.__version__}. The networks of `examples/` on MNIST, batch {BATCH}, Adam 1e-3 for everything; with"
    yield "labels, but where the column says otherwise. Test error in percent, of each seed.\n"
    yield "| network | cuts after | " + " | ".join(SYNTHESIZERS) + " |"
    yield "|---|---|" + "---|" * len(SYNTHESIZERS)
    for kind, cuts in CUTS.items():
        cells = [kind.__name__, ", ".join(cuts), *(found[kind, name] for name in SYNTHESIZERS)]
        yield "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    runs.measure(__doc__, RESULTS, report, steps=600, seeds=2, workers=runs.CORES)
