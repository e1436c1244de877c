"""Characters of real text: does a cut in time see past its window, as on the Penn Treebank in Jaderberg et al. (2017)?

Run:     python benchmarks/language_model.py run       goes on where it was stopped
Report:  python benchmarks/language_model.py report    writes benchmarks/results/language_model.md and .png
An LSTM reads parallel streams window by window. Every method sees the same characters; the methods differ in how
far a gradient reaches: to the beginning of the window, or past it by what a synthesizer predicts at its end.
After a change to a method, take its lines out of the file of runs.
"""

import argparse
import dataclasses
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import runs
import torch
from torch import Tensor, nn

import dni_fx

RUNS = Path(__file__).parent / "results" / "language_model.jsonl"
TEXT = "tinyshakespeare.txt"
EMBEDDING, HIDDEN, STREAMS, LR = 64, 256, 16, 2e-3
LONGEST = 40  # of the windows; the others divide it, so that every stream wraps around between two windows
POINTS = 20  # of a curve

WINDOWS = [8, 20, 40]  # of truncated backpropagation
DNI_WINDOW = 8
GRID = [("least_squares", 1.0), ("least_squares", 0.9), ("mlp", 1.0)]  # synthesizer, discount
PAPER = {"BPTT 8": 1.354, "BPTT 20": 1.349, "BPTT 40": 1.344, "DNI 8": 1.340}
State = tuple[Tensor, Tensor]


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run; every method is trained by Adam with the same learning rate, which falls to zero."""

    method: str  # "BPTT", "DNI"
    window: int
    seed: int
    characters: int
    steps_every: int | None = None  # characters of a stream between two optimizer steps; None: a window
    synthesizer: str = "least_squares"
    discount: float = 1.0


class Reader(nn.Module):
    """An LSTM that predicts the next character."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(characters, EMBEDDING), nn.LSTM(EMBEDDING, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, characters)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = self.lstm(self.embedding(x), state)
        return self.head(y), state


def start(streams: int) -> State:
    return torch.zeros(1, streams, HIDDEN), torch.zeros(1, streams, HIDDEN)


@dataclasses.dataclass(frozen=True)
class Text:
    """Characters as numbers: the first 90 % to train on, twice 5 % held out."""

    characters: int
    train: Tensor
    validation: Tensor
    test: Tensor


def found() -> Path | None:
    shared = Path(__file__).resolve().parents[2] / "shared" / "data" / "text"
    data = Path(os.environ.get("DNI_FX_DATA", "data"))
    return next((path / TEXT for path in (shared, data / "text", data) if (path / TEXT).is_file()), None)


def read(path: Path) -> Text:
    text = path.read_text()
    number = {character: i for i, character in enumerate(sorted(set(text)))}
    numbers = torch.tensor([number[character] for character in text])
    train, validation, test = numbers.tensor_split([len(text) * 90 // 100, len(text) * 95 // 100])
    return Text(len(number), train, validation, test)


def bits(model: nn.Module, text: Tensor) -> float:
    """A character, read in 64 streams that begin with zero states."""
    rows = text[: (len(text) - 1) // 64 * 64].view(64, -1)
    with torch.no_grad():
        logits, _ = model(rows[:, :-1], start(64))
        return float(nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())) / math.log(2)


def windows(text: Tensor, window: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless windows: characters, next characters, and 1 for each stream that continues, else 0 (N, 1).

    At the end of the text a stream starts again at its beginning.
    """
    size = (len(text) - 1) // (STREAMS * LONGEST) * LONGEST  # from one stream to the next
    at = torch.arange(STREAMS)[:, None] * size
    goes_on = torch.zeros(STREAMS, 1)
    while True:
        places = at + torch.arange(window)
        yield text[places], text[places + 1], goes_on
        at = (at + window) % (STREAMS * size)
        goes_on = (at > 0).float()


def decoupled(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, example: tuple[Tensor, State]) -> nn.Module:
    training, made = dni_fx.Training(discount=run.discount), run.synthesizer
    return dni_fx.transform(
        model, example, state=True, synthesizer=made, optimizer=optimizer, training=training, verify=False
    )


def train(run: Run, text: Text) -> dict[str, Any]:
    """Bits a character of the text held out, by characters seen and at the end; time a character."""
    torch.manual_seed(run.seed)
    model = Reader(text.characters)
    optimizer = torch.optim.Adam(model.parameters(), LR)
    state = start(STREAMS)
    net: Any = model
    if run.method == "DNI":
        net = decoupled(run, model, optimizer, (text.train[: STREAMS * run.window].view(STREAMS, -1), state)).train()
    every = (run.steps_every or run.window) // run.window
    total = run.characters // (STREAMS * run.window)
    # Towards zero: at a constant rate the results swing by more than the windows differ.
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, total // every)
    curve: list[tuple[int, float]] = []
    seconds = 0.0
    for index, (x, y, goes_on) in zip(range(1, total + 1), windows(text.train, run.window), strict=False):
        begun = time.process_time()  # CPU time of one thread: other load on the machine counts less
        state = state[0] * goes_on, state[1] * goes_on
        logits, state = net(x, state)
        state = state[0].detach(), state[1].detach()
        # The mean of the window, also where several make a step: the synthesizer's targets are then the same, and
        # Adam does not mind a factor.
        nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten()).backward()
        if index % every == 0:
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        seconds += time.process_time() - begun
        if index * POINTS // total > len(curve):
            curve.append((index * run.window * STREAMS, bits(model, text.validation)))
    metrics = net.dni.metrics().get("time0", {}) if run.method == "DNI" else {}
    microseconds = 1e6 * seconds / (total * run.window * STREAMS)
    return {"bits": bits(model, text.test), "curve": curve, "microseconds": microseconds} | metrics


def train_on_text(run: Run) -> dict[str, Any]:
    path = found()
    assert path is not None
    return train(run, read(path))


def command_run(arguments: argparse.Namespace) -> None:
    if found() is None:
        sys.exit(f"{TEXT} is not here (DNI_FX_DATA names its folder): skipped")
    every = arguments.steps_every or None
    if any((every or window) % window for window in [*WINDOWS, DNI_WINDOW]):
        sys.exit(f"--steps-every {every}: a multiple of every window, or 0")
    methods = [Run("BPTT", window, 0, arguments.characters, every) for window in WINDOWS]
    methods += [Run("DNI", DNI_WINDOW, 0, arguments.characters, every, *options) for options in GRID]
    wanted = [dataclasses.replace(run, seed=seed) for seed in range(arguments.seeds) for run in methods]
    runs.finish(
        arguments.runs,
        wanted,
        train_on_text,
        arguments.workers,
        lambda result: f"{result['bits']:.3f} bits, {result['microseconds']:.0f} us a character",
    )


# ------------------------------------------------------------------------------------------------ report
Results = dict[Run, list[dict[str, Any]]]  # of all seeds, under the run with seed 0


def name(run: Run) -> str:
    """As in the paper's table; of DNI, what differs from the library's defaults."""
    options = [f"`{run.synthesizer}`"] if run.synthesizer != Run.synthesizer else []
    options += [f"discount={run.discount:g}"] if run.discount != 1 else []
    return ", ".join([f"{run.method} {run.window}", *options])


def spread(values: list[float]) -> str:
    """Mean; the least, the most and the number of the seeds."""
    mean = statistics.mean(values)
    return f"{mean:.3f} ({min(values):.3f}-{max(values):.3f}; {len(values)})" if len(values) > 1 else f"{mean:.3f} (1)"


def sections(results: Results) -> Iterator[tuple[str, Results]]:
    """Runs that saw the same characters, and whose optimizer stepped alike."""
    for characters, every in dict.fromkeys((run.characters, run.steps_every) for run in results):
        here = {run: r for run, r in results.items() if (run.characters, run.steps_every) == (characters, every)}
        steps = f"{every} characters of a stream" if every else "window"
        yield f"{characters:,} characters, a step every {steps}", here


def tables(results: Results) -> Iterator[str]:
    for title, here in sections(results):
        yield f"## {title}\n"
        yield "| method | test | validation | time a character | the paper's |\n|---|---|---|---|---|"
        times = {run: statistics.mean(r["microseconds"] for r in records) for run, records in here.items()}
        first = next(iter(times.values()))
        for run, records in here.items():
            test, validation = ([r["bits"] for r in records], [r["curve"][-1][1] for r in records])
            paper = f"{PAPER[name(run)]:.3f}" if name(run) in PAPER else ""
            cells = (name(run), spread(test), spread(validation), f"{times[run] / first:.2f}", paper)
            yield "| " + " | ".join(cells) + " |"
        yield ""


def plot(results: Results, path: Path) -> None:
    """Validation by characters seen, mean of the seeds; a panel for every section."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = list(sections(results))
    figure, axes = pyplot.subplots(1, len(panels), figsize=(7 * len(panels), 5), squeeze=False)
    for (title, here), panel in zip(panels, axes[0], strict=True):
        for run, records in here.items():
            points = zip(*(record["curve"] for record in records), strict=True)
            seen, curve = zip(*((p[0][0], statistics.mean(b for _, b in p)) for p in points), strict=True)
            panel.plot(seen, curve, label=name(run))
        panel.set(title=title, xlabel="characters seen", ylabel="validation, bits a character")
        panel.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def command_report(arguments: argparse.Namespace) -> None:
    results = runs.by_seed(arguments.runs, Run)
    results = {run: results[run] for run in sorted(results, key=lambda one: (one.method, one.window))}
    if not results:
        sys.exit(f"no runs in {arguments.runs}")
    versions = sorted({record["torch"] for records in results.values() for record in records})
    picture = arguments.runs.with_suffix(".png")
    lines = [
        "# Characters of real text",
        "",
        f"`python benchmarks/language_model.py run`, then `report`; torch {', '.join(versions)}. {TEXT}, 90 % to train",
        f"on, 5 % to validate, 5 % to test. An embedding of {EMBEDDING}, an LSTM of {HIDDEN}, a linear head; {STREAMS}",
        f"parallel streams, Adam {LR:g} falling to zero, neither dropout nor clipping; a line a run in",
        f"[{arguments.runs.name}]({arguments.runs.name}). Bits a character at the end: mean of the seeds, their range,",
        "their number. BPTT T: windows of T characters, the state handed on, cut off. DNI T: with a cut in time",
        "between them, with all defaults but those in its name. The time is that of one core, beside the first row's.",
        "The paper: an LSTM of 1,024 on the Penn Treebank.",
        "",
        *tables(results),
        f"`python benchmarks/language_model.py report` draws the validation by characters seen: `{picture.name}`.",
        "",
    ]
    runs.write_report(arguments.runs, lines)
    plot(results, picture)


if __name__ == "__main__":
    # At a step a window, 0, short windows make more steps of the same text, which outweighs how far gradients reach; a
    # step every so many characters of a stream makes equally many.
    runs.command_line(__doc__, RUNS, command_run, command_report, characters=2_000_000, steps_every=0, seeds=3)
