"""The feed-forward table of Jaderberg et al. (2017): test error with a cut after every hidden layer.

Run:     python benchmarks/paper_feedforward.py run --steps 10000 --seeds 3
Report:  python benchmarks/paper_feedforward.py report

Every run is one line in the file of runs, and is not repeated: stop it and start it again at will. `transform` alone
makes the networks; the training loop is the ordinary one, Adam 1e-3 divided by ten at 60 % and 80 % of the steps.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dni_fx

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import common

RUNS = Path(__file__).parent / "results" / "paper_feedforward.jsonl"
FASHION = Path("/usr/share/datasets/fashion-mnist")
BATCH = 256


class Zero(dni_fx.Synthesizer):
    """Predicts no gradient, for ever: "no-bprop"."""

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
        return torch.zeros_like(activation)


LABELS: dict[str, Any] = {"classes": 10}
LOSS: dict[str, Any] = LABELS | {"loss": "cross_entropy"}
METHODS: dict[str, dict[str, Any] | None] = {
    "no-bprop": {"synthesizer": Zero},
    "backprop": None,
    "DNI": {"synthesizer": "mlp(hidden_layers=2, hidden_size=1024, batch_norm=True)"},
    "cDNI": LABELS | {"synthesizer": "linear"},
    "critic": LOSS | {"synthesizer": "critic"},
    "local head": LOSS | {"synthesizer": "local_head"},
    "guided head": LOSS | {"synthesizer": "guided_head"},
}


class Block(nn.Sequential):
    """A hidden layer with all that belongs to it."""


def fcn(layers: int) -> nn.Module:
    """So many layers, the classifier among them; 256 units, batch norm, ReLU."""
    sizes = [28 * 28] + [256] * (layers - 1)
    hidden = [Block(nn.Linear(i, o), nn.BatchNorm1d(o), nn.ReLU()) for i, o in zip(sizes[:-1], sizes[1:], strict=True)]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(256, 10))


def cnn(layers: int, channels: int) -> nn.Module:
    """5x5 convolutions, batch norm, ReLU; 3x3 max-pooling after the first, average pooling after the others."""
    hidden = []
    for k in range(layers - 1):
        conv = nn.Conv2d(channels if k else 1, channels, 5, padding=2)
        pool = nn.AvgPool2d(3, 2, 1) if k else nn.MaxPool2d(3, 2, 1)
        hidden.append(Block(conv, nn.BatchNorm2d(channels), nn.ReLU(), pool))
    side = 28
    for _ in hidden:
        side = (side + 1) // 2
    return nn.Sequential(*hidden, nn.Flatten(), nn.Linear(channels * side**2, 10))


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run."""

    data: str  # "MNIST", "Fashion-MNIST"
    net: str  # "FCN 3"
    method: str
    seed: int
    steps: int
    channels: int = 0


def build(run: Run) -> nn.Module:
    kind, layers = run.net.split()
    return fcn(int(layers)) if kind == "FCN" else cnn(int(layers), run.channels)


def train(run: Run, digits: common.Digits) -> dict[str, Any]:
    """Test error in percent, its curve, and the time of a step."""
    torch.manual_seed(run.seed)
    options = METHODS[run.method] if run.method in METHODS else LOSS | {"synthesizer": run.method}
    net = build(run)
    if options is not None:
        cuts = [name for name, module in net.named_modules() if isinstance(module, Block)]
        net = dni_fx.transform(net, digits.train_x[:BATCH], cuts=cuts, verify=False, **options)
    torch.manual_seed(run.seed + 100)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    milestones = [int(0.6 * run.steps), int(0.8 * run.steps)]
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, 0.1)
    labelled = bool(options and "classes" in options)
    score = common.error_percent(digits)
    curve, seconds = [], 0.0
    for step in range(1, run.steps + 1):
        rows = torch.randint(len(digits.train_y), (BATCH,))
        x, y = digits.train_x[rows], digits.train_y[rows]
        start = time.perf_counter()
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x, **({"dni_context": y} if labelled else {})), y).backward()
        optimizer.step()
        scheduler.step()
        seconds += time.perf_counter() - start
        if step % max(run.steps // 20, 1) == 0:
            net.eval()
            with torch.no_grad():
                curve.append((step, score(net)))
            net.train()
    return {"error": curve[-1][1], "curve": curve, "milliseconds": 1e3 * seconds / run.steps}


def data(name: str) -> common.Digits | None:
    if name == "MNIST":
        return common.load_digits()
    return dataclasses.replace(common._mnist(FASHION), name=name) if FASHION.is_dir() else None


def _work(run: Run) -> tuple[Run, dict[str, Any]]:
    torch.set_num_threads(1)
    digits = data(run.data)
    assert digits is not None
    return run, train(run, digits)


def done(path: Path) -> Iterator[tuple[Run, dict[str, Any]]]:
    if path.is_file():
        for line in path.read_text().splitlines():
            record = json.loads(line)
            yield Run(**record["run"]), record


def command_run(arguments: argparse.Namespace) -> None:
    finished = {run for run, _ in done(arguments.runs)}
    wanted = [
        Run(arguments.data, net, method, seed, arguments.steps, arguments.channels if net.startswith("CNN") else 0)
        for seed in range(arguments.seeds)
        for net in arguments.nets
        for method in arguments.methods
    ]
    if data(arguments.data) is None:
        sys.exit(f"{arguments.data} is not here (Debian package dataset-fashion-mnist): skipped")
    todo = [run for run in wanted if run not in finished]
    context = multiprocessing.get_context("spawn")
    with context.Pool(arguments.workers) as pool:
        for run, result in pool.imap_unordered(_work, todo):
            record = {"run": dataclasses.asdict(run), "torch": torch.__version__} | result
            with arguments.runs.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(f"{run.data} {run.net} {run.method} seed {run.seed}: {result['error']:.2f} %", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=RUNS)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("--data", default="MNIST")
    run.add_argument("--nets", nargs="+", default=["FCN 3", "FCN 4", "FCN 5", "FCN 6"])
    run.add_argument("--methods", nargs="+", default=list(METHODS), help="or a synthesizer with a loss")
    run.add_argument("--steps", type=int, default=10_000)
    run.add_argument("--seeds", type=int, default=3)
    run.add_argument("--channels", type=int, default=64)
    run.add_argument("--workers", type=int, default=os.cpu_count())
    command_run(parser.parse_args())


if __name__ == "__main__":
    main()
