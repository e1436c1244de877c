"""Loss at equal samples and at equal time of a decoupled pipeline in two processes, beside 1F1B and PipeDream-2BW.

Run:  python benchmarks/pipeline_learning.py            writes benchmarks/results/pipeline_learning.jsonl and .md
      python benchmarks/pipeline_learning.py --quick    few steps, one seed; writes no file

The nets and the data are those of examples/pipeline.py: an MLP on digits, and a small GPT on characters. Batches of 64
in four micro-batches; Adam. GPipe, 1F1B and ZBV are backprop, and have the same losses; 1F1B is torch's. Decoupled
stages update after each micro-batch, so there is a backprop that does, too. PipeDream-2BW applies the gradient of the
weights before the last update (Narayanan et al. 2021, section 3.1); it is computed here in one process. The learning
rate of a way is the best of RATES, by the loss over the last tenth of the samples with seed 0.

Seconds are measured apart, in short runs that take turns.
"""

import argparse
import copy
import dataclasses
import importlib.util
import itertools
import json
import math
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import runs
import torch
import torch.distributed as dist
from torch import Tensor, fx, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

import dni_fx
from dni_fx.pipeline import ScheduleDecoupled, stages

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "benchmarks" / "results" / "pipeline_learning.jsonl"
RATES = {
    "digits": (1.25e-4, 2.5e-4, 5e-4, 1e-3, 2e-3),
    "characters": (1.25e-4, 2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2),
}
STEPS = {"digits": 800, "characters": 250}
TIMED = {"digits": 101, "characters": 21}  # steps of the short runs; the first does not count
IN_ONE_PROCESS = ("backprop, each micro-batch", "PipeDream-2BW")
WAYS: dict[str, dict[str, Any]] = {
    "1F1B": {},
    **{way: {} for way in IN_ONE_PROCESS},
    "decoupled, exits": {"synthesizer": "exit(weights='copy')", "loss": "cross_entropy"},
    "decoupled, exits that share the head": {"loss": "cross_entropy"},
    "decoupled, linear": {"synthesizer": "linear"},
}
RATE = 1e-3  # of the short runs, and of the quick run
TURNS = 5  # of the short runs
Result = dict[str, Any]
Draw = Callable[[], tuple[Tensor, Tensor]]


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run."""

    net: str
    way: str
    rate: float
    seed: int
    steps: int


def example() -> Any:
    """examples/pipeline.py, whose name is that of another file here."""
    sys.path.append(str(ROOT / "examples"))
    spec = importlib.util.spec_from_file_location("example_of_a_pipeline", ROOT / "examples" / "pipeline.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def loss_of(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target)


def process(rank: int, run: Run, folder: str) -> None:
    """One rank; the one with the last stage writes the result."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    made = example()
    torch.manual_seed(run.seed)
    _, net, cuts, draw, test = getattr(made, run.net)()
    if run.way in IN_ONE_PROCESS:
        if rank == 0:
            write(folder, in_one_process(net, draw, test, run, made.MICROBATCHES))
        return
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    in_two = by_1f1b if run.way == "1F1B" else decoupled
    result = in_two(net, cuts, draw, test, run, made.MICROBATCHES)
    if rank == 1:
        write(folder, result)
    dist.destroy_process_group()


def decoupled(net: nn.Module, cuts: list[str], draw: Draw, test: tuple[Tensor, Tensor], run: Run, parts: int) -> Result:
    rank = dist.get_rank()
    cut = dni_fx.transform(net, draw()[0], cuts=cuts, verify=False, **WAYS[run.way])
    stage = stages(cut.train())[rank]
    optimizer = torch.optim.Adam(stage.parameters(), run.rate)
    schedule = ScheduleDecoupled(stage, parts, loss_of, optimizer=optimizer)
    torch.manual_seed(run.seed)
    losses: list[Tensor] = []
    seconds = []
    for _ in range(run.steps):
        begin = time.perf_counter()
        x, y = draw()
        schedule.step(x, target=y, losses=losses)
        seconds.append(time.perf_counter() - begin)
    metrics = schedule.metrics()
    output = schedule.eval(test[0], target=test[1])
    schedule.close()
    gathered: list[Any] = [None, None]
    dist.all_gather_object(gathered, metrics)
    return {**figures(losses, parts, output, test[1]), "seconds": sum(seconds[1:]), "metrics": gathered} if rank else {}


def by_1f1b(net: nn.Module, cuts: list[str], draw: Draw, test: tuple[Tensor, Tensor], run: Run, parts: int) -> Result:
    rank = dist.get_rank()
    below, above = split(net, cuts[0])
    x = draw()[0].tensor_split(parts)[0]
    net.eval()
    values = [x, below(x), net(x)]  # the schedule sends gradients for those that require them
    own = (below, above)[rank].train()
    stage = PipelineStage(own, rank, 2, torch.device("cpu"), values[rank], values[rank + 1])
    schedule = Schedule1F1B(stage, parts, loss_of)
    optimizer = torch.optim.Adam(own.parameters(), run.rate)
    torch.manual_seed(run.seed)
    losses: list[Tensor] = []
    seconds = []
    for _ in range(run.steps):
        begin = time.perf_counter()
        x, y = draw()
        found: list[Tensor] = []
        optimizer.zero_grad()
        schedule.step(*([] if rank else [x]), **({"target": y, "losses": found} if rank else {}))
        optimizer.step()
        losses += [loss.detach() for loss in found]
        seconds.append(time.perf_counter() - begin)
    for tensor in [*below.parameters(), *below.buffers()]:
        dist.broadcast(tensor.detach(), 0)
    net.eval()
    with torch.no_grad():
        return {**figures(losses, parts, net(test[0]), test[1]), "seconds": sum(seconds[1:])} if rank else {}


def split(net: nn.Module, cut: str) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The net up to a submodule, and the rest, on the same parameters."""

    class Tracer(fx.Tracer):
        def is_leaf_module(self, module: nn.Module, name: str) -> bool:
            return name == cut or super().is_leaf_module(module, name)

    nodes = [*Tracer().trace(net).nodes]
    last = next(k for k, node in enumerate(nodes) if node.target == cut)
    below, above = fx.Graph(), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in nodes[: last + 1]:
        copies[node] = below.node_copy(node, copies.__getitem__)
    below.output(copies[nodes[last]])
    copies = {nodes[last]: above.placeholder("activation")}
    for node in nodes[last + 1 :]:
        copies[node] = above.node_copy(node, copies.__getitem__)
    return fx.GraphModule(net, below), fx.GraphModule(net, above)


def in_one_process(net: nn.Module, draw: Draw, test: tuple[Tensor, Tensor], run: Run, parts: int) -> Result:
    net.train()
    optimizer = torch.optim.Adam(net.parameters(), run.rate)
    older = copy.deepcopy(net)  # the weights before the last update
    trained = older if run.way == "PipeDream-2BW" else net
    torch.manual_seed(run.seed)
    losses: list[Tensor] = []
    seconds = []
    for _ in range(run.steps):
        begin = time.perf_counter()
        x, y = draw()
        for one, target in zip(x.tensor_split(parts), y.tensor_split(parts), strict=True):
            loss = loss_of(trained(one), target)
            losses.append(loss.detach())
            if run.way == "backprop, each micro-batch":
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            else:
                (loss / parts).backward()
        if run.way == "PipeDream-2BW":
            for p, q in zip(net.parameters(), older.parameters(), strict=True):
                p.grad, q.grad = q.grad, None
            older.load_state_dict(net.state_dict() | dict(older.named_buffers()))
        if run.way != "backprop, each micro-batch":
            optimizer.step()
            optimizer.zero_grad()
        seconds.append(time.perf_counter() - begin)
    net.load_state_dict(net.state_dict() | dict(trained.named_buffers()))
    net.eval()
    with torch.no_grad():
        return {**figures(losses, parts, net(test[0]), test[1]), "seconds": sum(seconds[1:])}


def figures(losses: list[Tensor], parts: int, output: Tensor, target: Tensor) -> Result:
    """The mean loss of each tenth of the samples; the loss and the error on the test data."""
    means = torch.stack(losses).view(-1, parts).mean(1)
    tenths = [float(part.mean()) for part in means.tensor_split(10)]
    error = 100 * float((output.argmax(1) != target).float().mean())
    return {"tenths": tenths, "test_loss": float(loss_of(output, target)), "error": error}


def write(folder: str, result: Result) -> None:
    (Path(folder) / "result.json").write_text(json.dumps(result))


def result_of(run: Run) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(process, (run, folder), nprocs=2, daemon=True, start_method="fork")
        found: Result = json.loads((Path(folder) / "result.json").read_text())
        return found


def do(path: Path, run: Run) -> Result:
    """The result of a run: that in the file, or else a new one, which is added to it."""
    for done, result in runs.done(path, Run):
        if done == run:
            return result
    result = result_of(run)
    with path.open("a") as file:
        file.write(json.dumps({"run": dataclasses.asdict(run), **result}) + "\n")
    print(run, f"{result['tenths'][-1]:.4f}", flush=True)
    return result


def every(path: Path, seeds: int, share: float) -> None:
    """First the rates with seed 0, then the best rate of each way with the others."""
    for net, way in itertools.product(STEPS, WAYS):
        steps = max(10, round(STEPS[net] * share))
        tried = {rate: do(path, Run(net, way, rate, 0, steps)) for rate in (RATES[net] if share == 1 else [RATE])}
        best = min(tried, key=lambda rate: tried[rate]["tenths"][-1])
        for seed in range(1, seeds):
            do(path, Run(net, way, best, seed, steps))
    for seed, net, way in itertools.product(range(TURNS if share == 1 else 1), STEPS, WAYS):
        do(path, Run(net, way, RATE, seed, TIMED[net]))


def report(path: Path) -> Iterator[str]:
    yield "# What a decoupled pipeline learns"
    yield ""
    yield f"`python benchmarks/pipeline_learning.py`; torch {torch.__version__}, gloo, two processes of one thread."
    yield "Batches of 64 in four micro-batches; Adam; for each way the best of some rates with seed 0. Mean over the"
    yield "seeds (least to greatest). Training loss at equal samples: over the last tenth of the samples. At equal"
    yield "time: over the tenth of the samples that a way has reached when the quickest way has seen all. ms: of a"
    yield "batch, median of short runs. PipeDream-2BW and the backprop that updates after each micro-batch ran in one"
    yield "process: the first has no time here, the second that of one process."
    for net in STEPS:
        trained: dict[str, dict[float, list[Result]]] = {}
        timed: dict[str, list[float]] = {}
        for run, result in runs.done(path, Run):
            if run.net == net and run.steps == TIMED[net]:
                timed.setdefault(run.way, []).append(1e3 * result["seconds"] / (run.steps - 1))
            elif run.net == net:
                trained.setdefault(run.way, {}).setdefault(run.rate, []).append(result)
        yield from ("", f"## {net}", "")
        yield from table(trained, {way: statistics.median(ms) for way, ms in timed.items() if way != "PipeDream-2BW"})


def table(trained: dict[str, dict[float, list[Result]]], timed: dict[str, float]) -> Iterator[str]:
    """A row for each way, from the results by way and rate, and the milliseconds of a batch."""
    yield "| way | rate | seeds | loss, equal samples | loss, equal time | ms | test loss | test error, % |"
    yield "|---|---|---|---|---|---|---|---|"
    for way in WAYS:
        by_rate = trained.get(way, {})
        if not by_rate:
            continue
        rate = max(by_rate, key=lambda one: (len(by_rate[one]), -by_rate[one][0]["tenths"][-1]))
        results = by_rate[rate]
        reached = min(timed.values()) / timed[way] if way in timed else 0.0
        columns = [
            [r["tenths"][-1] for r in results],
            [r["tenths"][max(0, math.ceil(10 * reached) - 1)] for r in results],
            *([r[key] for r in results] for key in ("test_loss", "error")),
        ]
        same, time_, loss, error = (f"{statistics.mean(c):.3f} ({min(c):.3f} to {max(c):.3f})" for c in columns)
        ms, time_ = (f"{timed[way]:.1f}", time_) if way in timed else ("-", "-")
        yield f"| {way} | {rate:g} | {len(results)} | {same} | {time_} | {ms} | {loss} | {error} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps, one seed and rate")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=RUNS, help="the file of runs (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.quick:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / RUNS.name
            every(path, 1, 0.02)
            print("\n".join(report(path)))
    else:
        every(arguments.runs, arguments.seeds, 1)
        runs.write_report(arguments.runs, list(report(arguments.runs)))


if __name__ == "__main__":
    main()
