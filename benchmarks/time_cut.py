"""How the synthesizer of a cut in time is best trained: Copy with three symbols, in windows of three steps.

Run:     python benchmarks/time_cut.py run       hours; goes on where it was stopped
Report:  python benchmarks/time_cut.py report    writes benchmarks/results/time_cut.md
Truncated backpropagation cannot reach from an answer to its symbol; the question is what lets a synthesizer do so,
whether the loss is summed over the answer or averaged.
"""

import argparse
import dataclasses
import math
import statistics
from pathlib import Path
from typing import Any

import runs
import torch
from torch import Tensor, nn

import dni_fx

RUNS = Path(__file__).parent / "results" / "time_cut.jsonl"
BITS, SYMBOLS, WINDOW, BATCH, HIDDEN = 8, 3, 3, 64, 128
ANSWER = SYMBOLS * BITS
State = tuple[Tensor, Tensor]


class Copier(nn.Module):
    """An LSTM that reads symbols and two marks, and predicts bits."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(BITS + 2, HIDDEN, batch_first=True), nn.Linear(HIDDEN, BITS)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = self.lstm(x, state)
        return self.head(y), state


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run; every method is trained by Adam 1e-3."""

    synthesizer: str  # "zero": truncated
    centered: bool | None  # None: the default
    lr: float | None  # of the synthesizer, beside the net's; None: the default
    reduction: str  # of the loss over the answer: "sum" or "mean"
    seed: int
    windows: int


def sequences() -> tuple[Tensor, Tensor]:
    """Inputs: a mark, symbols, a mark, steps to repeat the symbols in. Targets: the symbols in these last steps."""
    symbols = torch.randint(0, 2, (BATCH, SYMBOLS, BITS)).float()
    x = torch.zeros(BATCH, 2 * SYMBOLS + 2, BITS + 2)
    x[:, 0, BITS] = x[:, SYMBOLS + 1, BITS + 1] = 1
    x[:, 1 : SYMBOLS + 1, :BITS] = symbols
    return x, torch.cat([torch.zeros(BATCH, SYMBOLS + 2, BITS), symbols], 1)


def start() -> State:
    return torch.zeros(1, BATCH, HIDDEN), torch.zeros(1, BATCH, HIDDEN)


def train(run: Run) -> dict[str, Any]:
    """Bits of error a bit of the answer, by window: 1 is a guess."""
    torch.manual_seed(run.seed)
    model = Copier()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    training = dni_fx.Training(centered=run.centered, lr=run.lr)
    example = sequences()[0][:, :WINDOW], start()
    net = dni_fx.transform(
        model, example, state=True, synthesizer=run.synthesizer, optimizer=optimizer, training=training, verify=False
    ).train()
    curve, losses, windows = [], [], 0
    while windows < run.windows:
        x, y = sequences()
        state, total = start(), 0.0
        for t in range(0, x.shape[1], WINDOW):
            optimizer.zero_grad()
            logits, state = net(x[:, t : t + WINDOW], state)
            answer = slice(max(SYMBOLS + 2 - t, 0), None)
            errors = nn.functional.binary_cross_entropy_with_logits(
                logits[:, answer], y[:, t : t + WINDOW][:, answer], reduction="sum"
            )
            (errors / BATCH / (ANSWER if run.reduction == "mean" else 1)).backward()
            optimizer.step()
            total += errors.item() / BATCH / ANSWER / math.log(2)
            windows += 1
        losses.append(total)
        if windows // (run.windows // 20) > len(curve):
            curve.append(statistics.mean(losses[-200:]))
    return {"bits": curve[-1], "curve": curve} | net.dni.metrics().get("time0", {})


GRID: list[tuple[str, bool | None, float | None]] = [
    ("zero", None, None),
    ("least_squares", None, None),
    ("least_squares", False, None),
    ("least_squares(memory=1000, ridge=0.1)", False, None),
    ("mlp", None, None),
    ("mlp", False, None),
    ("mlp", None, 1.0),
]


def command_run(arguments: argparse.Namespace) -> None:
    wanted = [
        Run(*method, reduction, seed, arguments.windows)
        for seed in range(arguments.seeds)
        for reduction in ("sum", "mean")
        for method in GRID
    ]
    runs.finish(arguments.runs, wanted, train, arguments.workers, lambda result: f"{result['bits']:.3f} bits")


def command_report(arguments: argparse.Namespace) -> None:
    found: dict[tuple[Any, ...], dict[str, list[dict[str, Any]]]] = {}
    for run, record in runs.done(arguments.runs, Run):
        key = (run.synthesizer, run.centered, run.lr, run.windows)
        found.setdefault(key, {}).setdefault(run.reduction, []).append(record)
    lines = [
        "# How the synthesizer of a cut in time is best trained",
        "",
        f"`python benchmarks/time_cut.py run`, then `report`. Copy with {SYMBOLS} symbols of {BITS} bits, windows of",
        f"{WINDOW}, LSTM {HIDDEN}, batch {BATCH}, Adam 1e-3; a line a run in",
        f"[{arguments.runs.name}]({arguments.runs.name}). Bits of error a bit of the answer at the end, mean of the",
        "seeds (their number); 1 is a guess. `zero` is truncated backpropagation through time. Predictions are taken",
        "less their mean over the batch, but where it is kept.",
        "",
        "| synthesizer | mean over the batch | learning rate | windows | loss summed over the answer | averaged |",
        "|---|---|---|---|---|---|",
    ]
    for (synthesizer, centered, lr, windows), by_reduction in found.items():
        cells = []
        for reduction in ("sum", "mean"):
            bits = [record["bits"] for record in by_reduction.get(reduction, [])]
            cells.append(f"{statistics.mean(bits):.3f} ({len(bits)})" if bits else "")
        mean, rate = "kept" if centered is False else "", "" if lr is None else f"x {lr:g}"
        lines.append(f"| `{synthesizer}` | {mean} | {rate} | {windows:,} | {cells[0]} | {cells[1]} |")
    runs.write_report(arguments.runs, lines)


if __name__ == "__main__":
    runs.command_line(__doc__, RUNS, command_run, command_report, windows=20_000, seeds=1)
