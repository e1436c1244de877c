"""What a cut net learns beside backprop: exits, heads and synthesizers on nets and data of many kinds.

Run:     python benchmarks/learning.py run       hours; goes on where it was stopped
Sweep:   python benchmarks/learning.py sweep     learning rates of backprop
Report:  python benchmarks/learning.py report    writes benchmarks/results/learning.md
A run is a training ("train") or a measurement of a step ("cost"). After a change to a method, take its lines out of
the file of runs. The tasks are in learning_tasks.py, their data in learning_data.py.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import learning_report
import runs
import torch
from learning_data import Batch, Data, next_token
from learning_tasks import TASKS, Task
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import flop_registry

import dni_fx
from dni_fx.bench.live_bytes import training_peak

RUNS = Path(__file__).parent / "results" / "learning.jsonl"
METHODS = learning_report.METHODS
POINTS = 10  # of a curve
Run = learning_report.Run
ATTENTION = {  # beside the FLOPs of the two products; the place of the queries
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (1.0, 0),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (2.5, 1),
}


# ------------------------------------------------------------------------------------------------ nets
class _Both(torch.autograd.Function):
    """The identity; in backward, the sum of the true and the synthetic gradient."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, prediction: Tensor) -> Tensor:
        ctx.save_for_backward(prediction)
        return h.view_as(h)

    @staticmethod
    def backward(ctx: Any, target: Tensor) -> tuple[Tensor, Tensor]:
        (prediction,) = ctx.saved_tensors
        return target + prediction, torch.zeros_like(prediction)


def both(outputs: Sequence[Tensor], detached: object, predictions: Sequence[Tensor | None], segment: object) -> Any:
    """In the place of `dni_fx.ops.inject`: every exit's loss is added to the model's, and nothing is cut."""
    return tuple(h if p is None else _Both.apply(h, p) for h, p in zip(outputs, predictions, strict=True))


def uncut(net: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Send both gradients upstream at every cut of a net with unlock="none"."""
    crossings = [node for node in net.graph.nodes if node.target is dni_fx.ops.inject]
    assert crossings
    for node in crossings:
        node.target = both
    net.recompile()
    return net


def checkpointed(net: nn.Module, names: Sequence[str]) -> nn.Module:
    def again(forward: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: checkpoint(forward, *args, use_reentrant=False)

    for name in names:
        module = net.get_submodule(name)
        module.forward = again(module.forward)
    return net


def options(task: Task, method: str) -> dict[str, Any]:
    """Of `dni_fx.transform`."""
    if method == "DNI":
        return task.dni
    if method == "guided_head":
        synthesizer = "guided_head(dense=True)" if task.dense else "guided_head"
        return {"synthesizer": synthesizer, "classes": task.classes, "loss": "cross_entropy"}
    of = METHODS[method]
    loss = "cross_entropy" if task.loss is next_token else task.loss  # the same; many logits are computed in chunks
    synthesizer = f"exit(units={of.units}, tokens={of.tokens})"
    return {"synthesizer": synthesizer, "loss": loss, "unlock": of.unlock, "inside": of.inside}


def build(task: Task, data: Data, run: Run, example: Batch) -> nn.Module:
    torch.manual_seed(run.seed)
    net = data.build()
    if run.method == "backprop":
        return net
    if run.method == "checkpointing":
        return checkpointed(net, task.checkpointed)
    cuts = task.cuts[run.segments]
    made = dni_fx.transform(net, example[0], cuts=cuts, verify=False, **options(task, run.method))
    return uncut(made) if METHODS[run.method].unlock == "none" else made


class Trainee:
    """A net with its optimizer, and the number of batches that a step takes at once."""

    def __init__(self, task: Task, data: Data, run: Run, batches: int = 1) -> None:
        self.data, self.batches = data, batches
        example = data.batch(torch.Generator().manual_seed(1))
        self.task, self.net = task, build(task, data, run, example).train()
        self.context = run.method not in learning_report.EXACT
        self.optimizer = torch.optim.AdamW(self.net.parameters(), run.lr, weight_decay=task.weight_decay)

    def batch(self, random: torch.Generator) -> Batch:
        found = [self.data.batch(random) for _ in range(self.batches)]
        inputs = zip(*[x for x, _ in found], strict=True)
        return tuple(torch.cat(x) for x in inputs), torch.cat([y for _, y in found])

    def gradients(self, batch: Batch) -> None:
        inputs, target = batch
        self.optimizer.zero_grad()
        output = self.net(*inputs, dni_context=target) if self.context else self.net(*inputs)
        self.task.loss(output, target).backward()

    def step(self, batch: Batch) -> None:
        self.gradients(batch)
        self.optimizer.step()


# ------------------------------------------------------------------------------------------------ runs
def score(net: nn.Module, data: Data) -> float:
    net.eval()
    with torch.no_grad():
        found = data.score(net)
    net.train()
    return found


def train(run: Run) -> dict[str, Any]:
    """Scores by steps; the seconds of all steps."""
    task = TASKS[run.task]
    data = task.data()
    steps, batches = run.steps, 1
    if METHODS[run.method].larger:  # for the time of backprop's steps
        spent = cost(dataclasses.replace(run, steps=20))
        steps, batches = round(steps / spent["ratio"]), spent["batches"]
    trainee = Trainee(task, data, run, batches)
    random = torch.Generator().manual_seed(run.seed + 100)  # the same batches for every method
    scheduler = None
    if task.schedule is not None:
        factor = task.schedule
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            trainee.optimizer, lambda i: factor(i * run.steps // steps, run.steps)
        )
    torch.manual_seed(run.seed)
    curve: list[tuple[int, float]] = []
    seconds = 0.0
    for step in range(1, steps + 1):
        batch = trainee.batch(random)
        begun = time.process_time()
        trainee.step(batch)
        seconds += time.process_time() - begun
        if scheduler is not None:
            scheduler.step()
        if step * POINTS // steps > len(curve):
            curve.append((step, round(score(trainee.net, data), 4)))
    return {"score": curve[-1][1], "curve": curve, "seconds": round(seconds, 1), "batches": batches}


class Count(TorchDispatchMode):
    """FLOPs. `FlopCounterMode` cannot be used: it hooks modules whose gradients an exit computes by `autograd.grad`."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        elif func.name() == "torch_nn::_linear_cross_entropy_batch_chunked":  # with the gradients that it is asked for
            features, weight, *_ = args
            products = 1 + sum(args[-3:-1])  # the logits, the gradients of the features and of the weight
            self.total += 2 * products * features.numel() * len(weight)
        elif func._overloadpacket in ATTENTION:  # on a CPU, which the registry lacks
            times, place = ATTENTION[func._overloadpacket]
            rows, heads, length, width = args[place].shape
            self.total += int(times * 4 * rows * heads * length * length * width)
        return out


def flops(trainee: Trainee, batch: Batch) -> int:
    """Of the forward and the backward pass."""
    with Count() as counter:
        trainee.gradients(batch)
    return counter.total


def activations(trainee: Trainee, batch: Batch) -> int:
    """The most bytes alive at once that forward and backward allocate, without gradients of parameters."""
    trainee.optimizer.zero_grad()
    return max(training_peak(lambda: trainee.gradients(batch), trainee.net.parameters()).activations)


def enlarge(trainee: Trainee, base: Trainee) -> None:
    """Take as many batches at once as have no more activations than the base's one."""

    def bytes_of(one: Trainee) -> int:
        batch = one.batch(torch.Generator().manual_seed(2))
        one.step(batch)  # makes the optimizer's state
        return activations(one, batch)

    limit = bytes_of(base)
    while bytes_of(trainee) <= limit:
        trainee.batches += 1
    trainee.batches = max(trainee.batches - 1, 1)


def cost(run: Run) -> dict[str, Any]:
    """Time, memory and FLOPs of a step beside backprop's; the steps of the two take turns."""
    task = TASKS[run.task]
    data = task.data()
    base = dataclasses.replace(run, method="backprop")
    trainees = [Trainee(task, data, one) for one in (base, run)]
    if METHODS[run.method].larger:
        enlarge(trainees[1], trainees[0])
    pairs = [(trainee, trainee.batch(torch.Generator().manual_seed(2))) for trainee in trainees]
    times = runs.in_turn([lambda t=t, b=b: t.step(b) for t, b in pairs], run.steps)
    ratios = [own / backprop for backprop, own in zip(*times, strict=True)]
    bytes_ = [activations(trainee, batch) for trainee, batch in pairs]
    counts = [flops(trainee, batch) for trainee, batch in pairs]
    return {
        "ratio": round(statistics.median(ratios), 4),
        "milliseconds": round(1e3 * statistics.median(times[1]), 3),
        "activations": bytes_[1] / bytes_[0],
        "mebibytes": bytes_[1] / 2**20,
        "flops": counts[1] / counts[0] - 1,
        "batches": trainees[1].batches,
    }


def do(run: Run) -> dict[str, Any]:
    try:
        return cost(run) if run.what == "cost" else train(run)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{run.task}: {error} is not here; see learning_data.py") from None


def wanted(arguments: argparse.Namespace) -> Iterator[Run]:
    """Seed by seed; the costs first."""
    for seed in range(arguments.seeds):
        for name in arguments.tasks:
            task = TASKS[name]
            steps = arguments.steps or task.steps
            for method, segments in learning_report.rows(name):
                if method not in arguments.methods or segments not in (0, *(arguments.segments or task.cuts)):
                    continue
                if seed == 0 and method != "backprop" and arguments.what != "train":
                    yield Run("cost", name, method, segments, 0, arguments.timed, task.lr)
                if task.trains and method not in learning_report.SAME and arguments.what != "cost":
                    yield Run("train", name, method, segments, seed, steps, task.lr)


def say(result: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v:.4g}" for k, v in result.items() if isinstance(v, float))


def command_run(arguments: argparse.Namespace) -> None:
    found = list(wanted(arguments)) or sys.exit("nothing to run: these tasks have no such methods or segments")
    runs.finish(arguments.runs, found, do, arguments.workers, say)


def command_sweep(arguments: argparse.Namespace) -> None:
    """Backprop with other learning rates, a seed of its own, half of the steps."""
    found = [
        Run("train", name, "backprop", 0, 100, TASKS[name].steps // 2, factor * TASKS[name].lr)
        for name in arguments.tasks
        if TASKS[name].trains
        for factor in (0.5, 1.0, 2.0, 4.0)
    ]
    runs.finish(arguments.runs, found, do, arguments.workers, say)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=RUNS, help="the file of runs")
    commands = parser.add_subparsers(required=True)
    for name, function in (("run", command_run), ("sweep", command_sweep)):
        command = commands.add_parser(name)
        command.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
        command.add_argument("--workers", type=int, default=2)
        command.set_defaults(function=function)
    run = commands.choices["run"]
    run.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    run.add_argument("--segments", nargs="+", type=int, help="(default: all in learning_tasks.py)")
    run.add_argument("--what", choices=["train", "cost", "both"], default="both")
    runs.add_numbers(run, {"seeds": 3, "steps": 0, "timed": 30})
    commands.add_parser("report").set_defaults(function=learning_report.command)
    arguments = parser.parse_args()
    try:
        arguments.function(arguments)
    except FileNotFoundError as error:  # from a worker
        sys.exit(str(error))


if __name__ == "__main__":
    main()
