"""The table of benchmarks/learning.py."""

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import runs
from learning_tasks import TASKS, Task


@dataclass(frozen=True)
class Method:
    """A way to train.

    Attributes:
        title: For the table.
        units: Of the exit.
        unlock: As in `dni_fx.transform`; "none": nothing is cut.
        needs_labels: Only for classification.
        tasks: The only tasks; None: all.
        inside: As in `dni_fx.transform`.
        larger: A step takes as many batches as have the activations of backprop's one.
        tokens: The share of the positions that the loss of an exit is of.
    """

    title: str
    units: int = 0
    unlock: str = "backward"
    needs_labels: bool = False
    tasks: tuple[str, ...] | None = None
    inside: str = "keep"
    larger: bool = False
    tokens: float = 1.0


DEEP = ("gpt", "resnet110", "gpt2_small")
# Where nothing is trained.
MEASURED = ("backprop", "checkpointing", "exit 0", "exit 1", "exit 1 checkpoint", "exit 0 tokens")
METHODS = {
    "backprop": Method("backprop"),
    "checkpointing": Method("checkpointing"),
    "exit 0": Method("exit, 0 units"),
    "exit 1": Method("exit, 1 unit", 1),
    "exit 2": Method("exit, 2 units", 2),
    "exit 0 uncut": Method("backprop + losses of the exits, 0 units", 0, "none"),
    "exit 1 uncut": Method("backprop + losses of the exits, 1 unit", 1, "none"),
    "guided_head": Method("guided_head", needs_labels=True),
    "DNI": Method("DNI (predicted gradients)"),
    "exit 1 checkpoint": Method("exit, 1 unit, inside checkpoint", 1, tasks=DEEP, inside="checkpoint"),
    "exit 0 tokens": Method("exit, 0 units, 1/8 of the positions", 0, tasks=("gpt", "gpt2_small"), tokens=0.125),
    "exit 1 larger batch": Method("exit, 1 unit, larger batch", 1, tasks=("gpt",), larger=True),
}
EXACT = ("backprop", "checkpointing")  # without cuts
SAME = {"checkpointing": "backprop", "exit 1 checkpoint": "exit 1"}  # methods with the same gradients


@dataclass(frozen=True)
class Run:
    """A training, or a measurement of a step; every method has the same optimizer and learning rate."""

    what: str  # "train", "cost"
    task: str
    method: str
    segments: int  # 0: not cut
    seed: int
    steps: int
    lr: float


def rows(of: str) -> Iterator[tuple[str, int]]:
    """Methods and numbers of segments: the rows of a task."""
    task = TASKS[of]
    for name, method in METHODS.items():
        if (method.needs_labels and task.classes is None) or of not in (method.tasks or TASKS):
            continue
        if not task.trains and name not in MEASURED:
            continue
        everywhere = method.unlock == "backward" and not method.larger
        if name in EXACT:
            yield name, 0
        else:
            yield from ((name, segments) for segments in task.cuts if everywhere or segments == task.shown)


def trained_tasks() -> Iterator[tuple[str, Task]]:
    return ((name, task) for name, task in TASKS.items() if task.trains)


Results = dict[Run, dict[str, Any]]


def at(curve: Sequence[tuple[int, float]], step: float) -> float:
    """The score after so many steps, on a line between the points; the last one, if there are not so many."""
    for (before, low), (after, high) in zip(curve, curve[1:], strict=False):
        if before <= step <= after:
            return low + (high - low) * (step - before) / (after - before)
    return curve[-1][1] if step > curve[0][0] else curve[0][1]


def number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 3 else f"{value:.2f}"


def mean(values: Sequence[float]) -> str:
    """Mean; the least, the most and the number of the seeds."""
    if not values:
        return "-"
    middle = number(statistics.mean(values))
    spread = f"{number(min(values))} to {number(max(values))}; " if len(values) > 1 else ""
    return f"{middle} ({spread}{len(values)})"


def of_seeds(results: Results, name: str, method: str, segments: int) -> list[dict[str, Any]]:
    """The full-length trainings of a row, by seed."""
    task = TASKS[name]
    found = {
        run.seed: record
        for run, record in results.items()
        if (run.what, run.task, run.method, run.segments, run.lr, run.steps)
        == ("train", name, method, segments, task.lr, task.steps)
    }
    return [found[seed] for seed in sorted(found)]


def cost_of(results: Results, name: str, method: str, segments: int) -> dict[str, Any] | None:
    """The measurement with the most steps."""
    key = ("cost", name, method, segments)
    found = [run for run in results if (run.what, run.task, run.method, run.segments) == key]
    return results[max(found, key=lambda run: run.steps)] if found else None


def beside(results: Results, name: str, method: str, segments: int) -> str:
    """The mean of the ratios of the scores, seed by seed."""
    base = {r["run"]["seed"]: r["score"] for r in of_seeds(results, name, "backprop", 0)}
    own = of_seeds(results, name, method, segments)
    ratios = [r["score"] / base[r["run"]["seed"]] for r in own if r["run"]["seed"] in base]
    return f"{statistics.mean(ratios):.2f}" if ratios else "-"


def cells(results: Results, name: str, method: str, segments: int) -> list[str]:
    """A row of the table."""
    spent = cost_of(results, name, method, segments)
    costs = ["1.00", "1.00", "0"] if method == "backprop" else ["-"] * 3
    if spent is not None:
        costs = [f"{spent['ratio']:.2f}", f"{spent['activations']:.2f}", f"{100 * spent['flops']:.0f}"]
    head = [METHODS[method].title, str(segments) if segments else ""]
    if not TASKS[name].trains:
        return [*head, *costs]
    same = SAME.get(method, method)
    trained = of_seeds(results, name, same, segments)
    scores = [r["score"] for r in trained]
    if METHODS[method].larger:  # trained for backprop's time, not for its steps
        head[0] += "".join(sorted({f", {r['batches']} times" for r in trained}))
        return [*head, "-", "-", mean(scores), *costs]
    ratio = 1.0 if method == "backprop" else None if spent is None else float(spent["ratio"])
    at_time = [] if ratio is None else [at(r["curve"], TASKS[name].steps / ratio) for r in trained]
    return [*head, mean(scores), beside(results, name, same, segments), mean(at_time), *costs]


def summary(results: Results) -> Iterator[str]:
    """One row a task."""
    methods = [name for name, method in METHODS.items() if method.tasks is None and name not in EXACT]
    yield "| task | segments | score | backprop | " + " | ".join(METHODS[name].title for name in methods) + " |"
    yield "|---|---|---|---|" + "---|" * len(methods)
    for name, task in trained_tasks():
        base = mean([r["score"] for r in of_seeds(results, name, "backprop", 0)])
        ratios = [beside(results, name, method, task.shown) for method in methods]
        yield "| " + " | ".join([task.title, str(task.shown), task.unit, base, *ratios]) + " |"


def details(results: Results) -> Iterator[str]:
    for name, task in TASKS.items():
        yield f"\n### {task.title}\n"
        cuts = "; ".join(f"{k}: {', '.join(names)}" for k, names in task.cuts.items())
        decay = f"AdamW, weight decay {task.weight_decay:g}" if task.weight_decay else "Adam"
        how = f"Score: {task.unit}. {task.steps:,} steps, {decay}, {task.lr:g}" if task.trains else "Not trained"
        scores = ["score", "beside backprop", "in backprop's time"] if task.trains else []
        heads = ["method", "segments", *scores, "time", "memory", "extra FLOPs %"]
        yield f"{how}. Cuts after {cuts}.\n"
        yield "| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|"
        for method, segments in rows(name):
            yield "| " + " | ".join(cells(results, name, method, segments)) + " |"


def sweeps(results: Results) -> Iterator[str]:
    """Backprop by learning rate."""
    yield "| task | steps | score by learning rate |\n|---|---|---|"
    for name, task in trained_tasks():
        found = sorted(
            (run.lr, run.steps, record["score"])
            for run, record in results.items()
            if run.what == "train" and run.task == name and run.seed == 100
        )
        text = ", ".join(f"{lr:g}: {number(score)}" for lr, _, score in found)
        yield f"| {task.title} | {found[0][1] if found else '-'} | {text or '-'} |"


def command(arguments: argparse.Namespace) -> None:
    results = dict(runs.done(arguments.runs, Run))
    if not results:
        sys.exit(f"no runs in {arguments.runs}")
    versions = sorted({record["torch"] for record in results.values()})
    lines = [
        "# What a cut net learns beside backprop",
        "",
        f"`python benchmarks/learning.py run`, then `report`; torch {', '.join(versions)}, one thread a run. Every way",
        "to train a net has the same batches, optimizer and learning rate. The lower a score, the better. An exit is",
        '`synthesizer="exit(units=...)"`: later layers of the model compute the gradient at a cut. 0 units: the tail',
        "alone; 1 unit: the next residual branch or block, too. The control, backprop + losses of the exits, cuts",
        "nothing: what is below gets the true gradient and the exit's. `-`: not run.",
        "",
        "## At equal steps",
        "",
        "Backprop: mean (least to most; number of seeds). The others: the score divided by backprop's of the same",
        "seed, the mean of the seeds.",
        "",
        *summary(results),
        "",
        "## All",
        "",
        "In backprop's time: the score at the step that the method has reached when backprop ends, on its curve; the",
        "learning rate has not fallen to its end then. Time and memory of a step are ratios to backprop's: median of",
        "steps in turn, and the most bytes alive at once in the forward and the backward pass, less parameters and",
        "their gradients.",
        "Larger batch: a step takes as many batches as have no more activations than backprop's one; trained for",
        "backprop's time, with all of the schedule, at the same learning rate.",
        *details(results),
        "",
        "## Learning rates of backprop",
        "",
        *sweeps(results),
        "",
    ]
    runs.write_report(arguments.runs, lines)


if __name__ == "__main__":
    sys.exit("see learning.py")
