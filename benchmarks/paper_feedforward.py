"""The feed-forward table of Jaderberg et al. (2017): test error with a cut after every hidden layer.

Run:     python benchmarks/paper_feedforward.py run --steps 10000 --seeds 3
Report:  python benchmarks/paper_feedforward.py report

Every run is one line in the file of runs, and is not repeated: stop and start at will; after a change to a
method, take its lines out. `transform` alone makes the networks; the training loop is the ordinary one, Adam 1e-3
divided by ten at 60 % and 80 % of the steps.
"""

import argparse
import dataclasses
import functools
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import runs
import torch
from torch import Tensor, nn

import dni_fx
from dni_fx.synthesizers.base import Activation
from dni_fx.synthesizers.registry import REGISTRY

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import common

RUNS = Path(__file__).parent / "results" / "paper_feedforward.jsonl"
FASHION = Path("/usr/share/datasets/fashion-mnist")
BATCH = 256


def one_hidden_layer(activation: Activation, context_size: int = 0) -> dni_fx.Synthesizer:
    """With batch norm, as wide as the activation; for maps, of convolutions."""
    kind = REGISTRY["conv" if len(activation.shape) == 4 else "mlp"]
    made: dni_fx.Synthesizer = kind(activation, context_size, hidden_layers=1, batch_norm=True)
    return made


class ByPosition(dni_fx.Synthesizer):
    """For maps of a fixed size: a 3x3 convolution, and what a label adds, position by position."""

    def __init__(self, activation: Activation, context_size: int = 0) -> None:
        super().__init__(activation, context_size)
        self.conv = nn.Conv2d(self.features, self.features, 3, padding=1)
        self.label = nn.Linear(context_size, math.prod(activation.shape[1:]))
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
        assert context is not None
        return self.conv(activation) + self.label(context[:, :, 0, 0]).view_as(activation)


LABELS: dict[str, Any] = {"classes": 10}
LOSS: dict[str, Any] = LABELS | {"loss": "cross_entropy"}
SMOOTH = functools.partial(nn.functional.cross_entropy, label_smoothing=0.1)
GUIDED: dict[str, Any] = LOSS | {"synthesizer": "guided_head"}
METHODS: dict[str, dict[str, Any] | None] = {
    "no-bprop": {"synthesizer": "zero"},
    "backprop": None,
    "DNI": {"synthesizer": one_hidden_layer, "training": dni_fx.Training(scale=1 / 64)},
    "DNI, slow": {"training": dni_fx.Training(scale=1 / 64, lr=10, clip=1, warmup=500)},
    "cDNI": LABELS,
    "guided head": GUIDED,
}
MLP = "mlp(batch_norm=True)"
TRIED: dict[str, dict[str, Any]] = {  # without labels, for maps, and of the heads; what came of it: the notes
    "linear, scale=1": {"synthesizer": "linear", "training": dni_fx.Training(scale=1.0)},
    "linear, scale=1, lr=0.3": {"synthesizer": "linear", "training": dni_fx.Training(scale=1.0, lr=0.3)},
    "linear, scale=1/64": {"synthesizer": "linear", "training": dni_fx.Training(scale=1 / 64)},
    "linear, scale=1/256": {"synthesizer": "linear", "training": dni_fx.Training(scale=1 / 256)},
    "linear, warm": {"synthesizer": "linear", "training": dni_fx.Training(scale=1.0, clip=1, warmup=500)},
    "mlp, scale=1": {"synthesizer": MLP, "training": dni_fx.Training(scale=1.0)},
    "mlp, scale=1/256": {"synthesizer": MLP, "training": dni_fx.Training(scale=1 / 256)},
    "mlp, warm": {"synthesizer": MLP, "training": dni_fx.Training(scale=1 / 64, clip=1, warmup=500)},
    "mlp, Adam 1e-4": {"synthesizer": MLP, "training": dni_fx.Training(scale=1 / 64, lr=10)},
    "mlp, warm, Adam 3e-4": {"synthesizer": MLP, "training": dni_fx.Training(scale=1 / 64, lr=3, warmup=500)},
    "cDNI, the paper's": LABELS | {"synthesizer": "conv(hidden_layers=2, kernel_size=5, batch_norm=True)"},
    "cDNI, by position": LABELS | {"synthesizer": ByPosition},
    "guided head, lr=0.1": GUIDED | {"training": dni_fx.Training(lr=0.1)},
    "guided head, smooth": GUIDED | {"loss": SMOOTH},
}
RATES = {"DNI, slow": 1e-4, "mlp, Adam 1e-4": 1e-4, "mlp, warm, Adam 3e-4": 3e-4}  # else 1e-3


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


def transformed(net: nn.Module, x: Tensor, options: dict[str, Any]) -> nn.Module:
    """With a cut after every hidden layer, or where `options` name them."""
    cuts = [name for name, module in net.named_modules() if isinstance(module, Block)]
    return dni_fx.transform(net, x, verify=False, **({"cuts": cuts} | options))


def train(run: Run, digits: common.Digits) -> dict[str, Any]:
    """Test error in percent at the end, and by step."""
    torch.manual_seed(run.seed)
    options = (METHODS | TRIED).get(run.method, LOSS | {"synthesizer": run.method})
    net = build(run)
    optimizer = torch.optim.Adam(net.parameters(), RATES.get(run.method, 1e-3))
    if options is not None:
        net = transformed(net, digits.train_x[:BATCH], options | {"optimizer": optimizer})
    torch.manual_seed(run.seed + 100)
    milestones = [int(0.6 * run.steps), int(0.8 * run.steps)]
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, 0.1)
    labelled = bool(options and "classes" in options)
    return fit(net, optimizer, scheduler, digits, run.steps, BATCH, labelled)


def fit(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None,
    digits: common.Digits,
    steps: int,
    batch: int,
    labelled: bool,
) -> dict[str, Any]:
    """The ordinary loop."""
    score = common.error_percent(digits)
    curve = []
    for step in range(1, steps + 1):
        rows = torch.randint(len(digits.train_y), (batch,))
        x, y = digits.train_x[rows], digits.train_y[rows]
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x, **({"dni_context": y} if labelled else {})), y).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        if step % max(steps // 20, 1) == 0 or step == steps:
            net.eval()
            with torch.no_grad():
                curve.append((step, score(net)))
            net.train()
    return {"error": curve[-1][1], "curve": curve}


def data(name: str) -> common.Digits | None:
    if name == "MNIST":
        return common.load_digits()
    return dataclasses.replace(common._mnist(FASHION), name=name) if FASHION.is_dir() else None


def train_on_data(run: Run) -> dict[str, Any]:
    digits = data(run.data)
    assert digits is not None
    return train(run, digits)


def command_run(arguments: argparse.Namespace) -> None:
    wanted = [
        Run(arguments.data, net, method, seed, arguments.steps, arguments.channels if net.startswith("CNN") else 0)
        for seed in range(arguments.seeds)
        for net in arguments.nets
        for method in arguments.methods
    ]
    if data(arguments.data) is None:
        sys.exit(f"{arguments.data} is not here (Debian package dataset-fashion-mnist): skipped")
    runs.finish(arguments.runs, wanted, train_on_data, arguments.workers, lambda result: f"{result['error']:.2f} %")


# ------------------------------------------------------------------------------------------------ report
PAPER = {
    "FCN 3": {"no-bprop": 9.3, "backprop": 2.0, "DNI": 1.9, "cDNI": 2.2},
    "FCN 4": {"no-bprop": 12.6, "backprop": 1.8, "DNI": 2.2, "cDNI": 1.9},
    "FCN 5": {"no-bprop": 16.2, "backprop": 1.8, "DNI": 3.4, "cDNI": 1.7},
    "FCN 6": {"no-bprop": 21.4, "backprop": 1.8, "DNI": 4.3, "cDNI": 1.6},
    "CNN 3": {"no-bprop": 0.9, "backprop": 0.8, "DNI": 0.9, "cDNI": 1.0},
    "CNN 4": {"no-bprop": 2.8, "backprop": 0.6, "DNI": 0.7, "cDNI": 0.8},
}
Results = dict[tuple[str, str, int, int, str], list[dict[str, Any]]]  # by data, net, steps, channels, method


def gathered(path: Path) -> Results:
    found: Results = {}
    for run, record in runs.done(path, Run):
        found.setdefault((run.data, run.net, run.steps, run.channels, run.method), []).append(record)
    return found


def cell(records: list[dict[str, Any]]) -> str:
    """Mean; the least, the most and the number of the seeds."""
    errors = [r["error"] for r in records]
    mean, low, high = sum(errors) / len(errors), min(errors), max(errors)
    return f"{mean:.2f} ({low:.2f}-{high:.2f}; {len(errors)})" if len(errors) > 1 else f"{mean:.2f} (1)"


def tables(results: Results) -> Iterator[str]:
    for data, steps, channels in dict.fromkeys((k[0], k[2], k[3]) for k in results):
        here = {(k[1], k[4]): v for k, v in results.items() if (k[0], k[2], k[3]) == (data, steps, channels)}
        nets = sorted({net for net, _ in here})
        methods = [m for m in METHODS if any(m == method for _, method in here)]
        filters = f", {channels} channels" if channels else ""
        yield f"## {data}, {steps:,} steps{filters}\n"
        yield "Test error in percent: mean of the seeds, their range, their number.\n"
        yield "| net | " + " | ".join(methods) + " |\n|---|" + "---|" * len(methods)
        for net in nets:
            yield f"| {net} | " + " | ".join(cell(here[net, m]) if (net, m) in here else "" for m in methods) + " |"
        variants = [(net, method) for net, method in here if method not in METHODS]
        if variants:
            yield "\nOther options, for comparison:\n\n| net | synthesizer | error |\n|---|---|---|"
            yield from (f"| {net} | `{method}` | {cell(here[net, method])} |" for net, method in variants)
        yield ""


def plot(results: Results, path: Path) -> None:
    """Curves of the mean test error on MNIST, a panel for every net."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    nets = list(dict.fromkeys(k[1] for k in results if k[0] == "MNIST"))
    figure, panels = pyplot.subplots(1, len(nets), figsize=(4 * len(nets), 4), squeeze=False)
    for net, panel in zip(nets, panels[0], strict=True):
        for (data, name, *_, method), records in results.items():
            if (data, name) == ("MNIST", net) and method in METHODS:
                curves = [r["curve"] for r in records]
                steps = [step for step, _ in curves[0]]
                panel.plot(steps, [sum(c[i][1] for c in curves) / len(curves) for i in range(len(steps))], label=method)
        panel.set(title=net, xlabel="step", ylabel="test error, %", yscale="log")
    panels[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def command_report(arguments: argparse.Namespace) -> None:
    results = gathered(arguments.runs)
    versions = sorted({r["torch"] for records in results.values() for r in records})
    picture = arguments.runs.with_suffix(".png")
    lines = [
        "# The feed-forward table of Jaderberg et al. (2017)",
        "",
        f"`python benchmarks/paper_feedforward.py run`, then `report`; torch {', '.join(versions)}.",
        f"A cut after every hidden layer; batch {BATCH}, Adam 1e-3 divided by ten at 60 % and 80 % of the steps, seeds",
        f"from 0; a line a run in [{arguments.runs.name}]({arguments.runs.name}). DNI: synthesizers with one",
        "hidden layer and batch norm, scale=1/64; slow: linear ones, scale=1/64, clip=1, 500 steps of warm-up, Adam",
        "1e-4 for the net and 1e-3 for them. cDNI: linear, or for maps a convolution, with labels. The guided head",
        "with labels and the loss. All else are the defaults.",
        "",
        "The paper, 500,000 steps at Adam 3e-5:",
        "",
        "| net | no-bprop | backprop | DNI | cDNI |",
        "|---|---|---|---|---|",
        *[f"| {net} | " + " | ".join(str(v) for v in row.values()) + " |" for net, row in PAPER.items()],
        "",
        *tables(results),
        f"`python benchmarks/paper_feedforward.py report` draws the test error by step: `{picture.name}`.",
    ]
    runs.write_report(arguments.runs, lines)
    plot(results, picture)


# ------------------------------------------------------------------------------------------------ subset
def subset(digits: common.Digits) -> common.Digits:
    """5,000 training images, of which 1,000 are held out to test on."""
    rows = torch.randperm(len(digits.train_y), generator=torch.Generator().manual_seed(0))[:5000]
    x, y = digits.train_x[rows], digits.train_y[rows]
    return common.Digits("5,000 images", x[:4000], y[:4000], x[4000:], y[4000:])


SUBSET: dict[str, tuple[dict[str, Any] | None, str]] = {
    "backprop": (None, "94.5"),
    "DNI, 1 cut": ({"cuts": ["2"]}, "88.6"),
    "DNI, 3 cuts": ({}, "87.3"),
    "cDNI, 1 cut": (LABELS | {"cuts": ["2"]}, "93.1"),
    "cDNI, 3 cuts": (LABELS, "92.7"),
    "guided head, 1 cut": (GUIDED | {"cuts": ["2"]}, ""),
    "guided head, 3 cuts": (GUIDED, ""),
}


def command_subset(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    small = subset(common.load_digits())
    steps = 15 * len(small.train_y) // 64
    lines = [
        "# 5,000 images",
        "",
        "`python benchmarks/paper_feedforward.py subset`: 784-3x256-10 with batch norm, 4,000 images to train on and",
        f"1,000 to test on, {steps} steps of batch 64 (15 epochs), Adam 1e-3; accuracy in percent, mean and range of",
        f"{arguments.seeds} seeds. Beside it what a hand-written PyTorch implementation reaches in the same set-up, on",
        "another draw of 5,000 images.",
        "",
        "| trained with | accuracy | hand-written |",
        "|---|---|---|",
    ]
    for name, (options, theirs) in SUBSET.items():
        found = []
        for seed in range(arguments.seeds):
            torch.manual_seed(seed)
            net = fcn(4) if options is None else transformed(fcn(4), small.train_x[:64], options)
            torch.manual_seed(seed + 100)
            optimizer = torch.optim.Adam(net.parameters(), 1e-3)
            labelled = bool(options and "classes" in options)
            found.append(100 - fit(net, optimizer, None, small, steps, 64, labelled)["error"])
        row = f"{sum(found) / len(found):.1f} ({min(found):.1f} to {max(found):.1f})"
        lines.append(f"| {name} | {row} | {theirs} |")
        print(lines[-1], flush=True)
    (arguments.runs.parent / "small_mnist.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=RUNS)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("--data", default="MNIST")
    run.add_argument("--nets", nargs="+", default=["FCN 3", "FCN 4", "FCN 5", "FCN 6"])
    run.add_argument(
        "--methods", nargs="+", default=list(METHODS), help="also of those in TRIED, or a synthesizer with a loss"
    )
    run.add_argument("--steps", type=int, default=10_000)
    run.add_argument("--seeds", type=int, default=3)
    run.add_argument("--channels", type=int, default=64)
    run.add_argument("--workers", type=int, default=runs.CORES)
    run.set_defaults(do=command_run)
    commands.add_parser("report").set_defaults(do=command_report)
    small = commands.add_parser("subset")
    small.add_argument("--seeds", type=int, default=3)
    small.set_defaults(do=command_subset)
    arguments = parser.parse_args()
    arguments.do(arguments)


if __name__ == "__main__":
    main()
