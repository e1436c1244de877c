"""Copy and Repeat Copy, as in Jaderberg et al. (2017), Sect. 3.1: how long a sequence can be modelled.

Run:     python benchmarks/paper_recurrent.py run       an hour or more; goes on where it was stopped
Report:  python benchmarks/paper_recurrent.py report    writes benchmarks/results/paper_recurrent.md and .png
Truncated backpropagation through time beside a cut in time, in windows of 2 to 5 steps, with an equal number of
optimizer steps. A sequence grows when its loss is below 0.15 bits a bit (examples/tasks); the longest answer whose
loss fell below that counts, in symbols of 8 bits. After a change to a method, take its lines out of the file of
runs.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import runs
import torch

import dni_fx

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "tasks"))
import generators
import models
from curricula import Copy, RepeatCopy

RUNS = Path(__file__).parent / "results" / "paper_recurrent.jsonl"
BATCH, HIDDEN, LR = 64, 128, 1e-3
TASKS = {"Copy": Copy, "Repeat Copy": RepeatCopy}
WINDOWS = (2, 3, 4, 5)
REACH = 24  # steps: of a target over a horizon
POINTS = 40  # of a curve
COMPARED = ("longest", "microseconds")
PAPER = {
    ("Copy", "truncated"): (7, 8, 10, 8),
    ("Copy", "DNI"): (16, 14, 18, 18),
    ("Repeat Copy", "truncated"): (7, 5, 19, 23),
    ("Repeat Copy", "DNI"): (39, 33, 39, 59),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run."""

    task: str
    method: str
    window: int
    seed: int
    steps: int  # of the optimizer: windows
    synthesizer: str = "least_squares(ridge=0.001)"
    horizon: int = 1  # windows

    @property
    def name(self) -> str:
        return "DNI, horizon" if self.horizon > 1 else self.method


def methods(task: str, window: int, steps: int) -> list[Run]:
    """The runs in one row of the table."""
    truncated, dni = (Run(task, method, window, 0, steps) for method in ("truncated", "DNI"))
    return [truncated, dni, dataclasses.replace(dni, horizon=REACH // window)]


def train(run: Run) -> dict[str, Any]:
    """The longest answer that was modelled, in symbols, by steps; and the time a step."""
    torch.manual_seed(run.seed)
    task = TASKS[run.task]()
    model = models.Recurrent("lstm", *task.sizes, HIDDEN, layers=1, dropout=0.0)
    optimizer = torch.optim.Adam(model.parameters(), LR)
    net: Any = model
    if run.method == "DNI":
        example = torch.rand(BATCH, run.window, task.sizes[0]), model.start(BATCH)
        training, made = dni_fx.Training(horizon=run.horizon), run.synthesizer
        net = dni_fx.transform(
            model, example, state=True, synthesizer=made, optimizer=optimizer, training=training, verify=False
        )
    torch.manual_seed(run.seed)  # the same sequences for all
    steps, longest = 0, 0
    curve: list[int] = []
    begun = time.process_time()  # CPU time of one thread: other load on the machine counts less
    while steps < run.steps:
        batch = task.batch(BATCH)
        answer = int(batch.answer.sum()) - 1  # without the end mark
        state, loss = model.start(BATCH), 0.0
        for window in generators.windows(batch, run.window):
            optimizer.zero_grad()
            outputs, state = net(window.inputs, state)
            state = tuple(tensor.detach() for tensor in state)
            part = (task.losses(outputs, window.targets) * window.mask).sum() / (BATCH * batch.mask.sum())
            part.backward()
            optimizer.step()
            steps += 1
            loss += part.item()
        longest = max(longest, answer if loss < 0.15 else 0)
        task.advance(steps, loss)
        curve += [longest] * (steps * POINTS // run.steps - len(curve))
    microseconds = 1e6 * (time.process_time() - begun) / steps
    return {"longest": longest, "curve": curve[:POINTS], "microseconds": microseconds}


def command_run(arguments: argparse.Namespace) -> None:
    wanted = [
        dataclasses.replace(run, seed=seed)
        for seed in range(arguments.seeds)
        for task in TASKS
        for window in WINDOWS
        for run in methods(task, window, arguments.steps)
    ]
    runs.finish(arguments.runs, wanted, train, arguments.workers, lambda result: f"{result['longest']} symbols")


# ------------------------------------------------------------------------------------------------ report
Results = dict[Run, list[dict[str, Any]]]  # of all seeds, under the run with seed 0


def spread(values: list[int]) -> str:
    return f"{statistics.mean(values):.1f} ({', '.join(map(str, values))})" if values else ""


def table(results: Results, task: str, steps: int) -> Iterator[str]:
    yield f"## {task}, {steps:,} steps\n"
    yield "| T | truncated | DNI | ratio | time | DNI, horizon | ratio | time | the paper: truncated, DNI |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for i, window in enumerate(WINDOWS):
        truncated, *others = [results.get(run, []) for run in methods(task, window, steps)]
        if not truncated:
            continue
        cells = [str(window), spread([record["longest"] for record in truncated])]
        for records in others:
            cells += compared(records, truncated) if records else ["", "", ""]
        cells.append(", ".join(str(PAPER[task, method][i]) for method in ("truncated", "DNI")))
        yield "| " + " | ".join(cells) + " |"
    yield ""


def compared(records: list[dict[str, Any]], beside: list[dict[str, Any]]) -> list[str]:
    """How long an answer, its ratio, and the ratio of the time of a step."""
    length, time = ([statistics.mean(r[key] for r in own) for own in (records, beside)] for key in COMPARED)
    return [
        spread([r["longest"] for r in records]),
        f"{length[0] / max(length[1], 1e-9):.2f}",
        f"{time[0] / time[1]:.2f}",
    ]


def plot(results: Results, path: Path) -> None:
    """The longest answer by steps, mean of the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(TASKS), figsize=(7 * len(TASKS), 5), squeeze=False)
    for task, panel in zip(TASKS, axes[0], strict=True):
        for run, records in results.items():
            if run.task == task:
                curve = [statistics.mean(point) for point in zip(*(r["curve"] for r in records), strict=True)]
                seen = [run.steps * (i + 1) / POINTS for i in range(len(curve))]
                style = {"truncated": ":", "DNI": "--"}.get(run.name, "-")
                color = f"C{WINDOWS.index(run.window)}"
                panel.plot(seen, curve, style, color=color, label=f"{run.name}, T = {run.window}")
        panel.set(title=task, xlabel="optimizer steps", ylabel="longest answer modelled, symbols")
        panel.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def command_report(arguments: argparse.Namespace) -> None:
    results = runs.by_seed(arguments.runs, Run)
    if not results:
        sys.exit(f"no runs in {arguments.runs}")
    picture = arguments.runs.with_suffix(".png")
    lines = [
        "# Copy and Repeat Copy: how long a sequence can be modelled",
        "",
        "`python benchmarks/paper_recurrent.py run`, then `report`. The longest answer, in symbols of 8 bits, whose",
        f"loss fell below 0.15 bits a bit: mean (each seed). LSTM {HIDDEN}, batch {BATCH}, Adam {LR:g}, the loss",
        f"averaged over the answer. DNI: a cut in time, `{Run.synthesizer}`; with a horizon, its targets",
        f"reach over so many windows as make {REACH} steps. Ratios are to truncation; a training step is a window of T",
        "steps, its time that of one core. A line a run in",
        f"[{arguments.runs.name}]({arguments.runs.name}). The paper: LSTM 256, batch 256, Adam 7e-5.",
        "",
    ]
    for steps in sorted({run.steps for run in results}):
        for task in TASKS:
            lines += table(results, task, steps)
    lines += [f"`python benchmarks/paper_recurrent.py report` draws the longest answer by steps: `{picture.name}`.", ""]
    runs.write_report(arguments.runs, lines)
    plot(results, picture)


if __name__ == "__main__":
    runs.command_line(__doc__, RUNS, command_run, command_report, steps=30_000, seeds=3)
