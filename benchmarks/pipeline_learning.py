"""Loss at equal samples of a decoupled pipeline in two processes, beside backprop and PipeDream-2BW.

Run:  python benchmarks/pipeline_learning.py            writes benchmarks/results/pipeline_learning.jsonl and .md
      python benchmarks/pipeline_learning.py --quick    few steps, one seed; writes no file

The nets and the data are those of examples/pipeline.py: an MLP on digits, and a small GPT on characters. Batches of 64
in four micro-batches; Adam. GPipe, 1F1B and ZBV have the losses of "backprop". Decoupled stages update after each
micro-batch, so there is a backprop that does, too. PipeDream-2BW applies the gradient of the weights before the last
update (Narayanan et al. 2021, section 3.1); it is computed here in one process. The learning rate of a way is the best
of RATES, by the loss over the last tenth of the samples with seed 0.
"""

import argparse
import copy
import dataclasses
import importlib.util
import itertools
import json
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
from torch import Tensor, nn

import dni_fx
from dni_fx.pipeline import ScheduleDecoupled, stages

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "benchmarks" / "results" / "pipeline_learning.jsonl"
RATES = (5e-4, 1e-3, 2e-3)
STEPS = {"digits": 400, "characters": 300}
WAYS = {
    "backprop": {},
    "backprop, each micro-batch": {},
    "PipeDream-2BW": {},
    "decoupled, exits": {"synthesizer": "exit(weights='copy')", "loss": "cross_entropy"},
    "decoupled, exits that share the head": {"loss": "cross_entropy"},
    "decoupled, linear": {"synthesizer": "linear"},
}
Result = dict[str, Any]


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
    net, cuts, draw, test = getattr(made, run.net)()
    if run.way in ("backprop", "backprop, each micro-batch", "PipeDream-2BW"):
        if rank == 0:
            write(folder, in_one_process(net, draw, test, run, made.MICROBATCHES))
        return
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    cut = dni_fx.transform(net, draw()[0], cuts=cuts, verify=False, **WAYS[run.way])
    stage = stages(cut.train())[rank]
    optimizer = torch.optim.Adam(stage.parameters(), run.rate)
    schedule = ScheduleDecoupled(stage, made.MICROBATCHES, loss_of, optimizer=optimizer)
    torch.manual_seed(run.seed)
    losses: list[Tensor] = []
    begin = time.perf_counter()
    for _ in range(run.steps):
        x, y = draw()
        schedule.step(x, target=y, losses=losses)
    seconds = time.perf_counter() - begin
    metrics = schedule.metrics()
    output = schedule.eval(test[0], target=test[1])
    schedule.close()
    gathered: list[Any] = [None, None]
    dist.all_gather_object(gathered, metrics)
    if stage.is_last:
        write(folder, {**figures(losses, made.MICROBATCHES, output, test[1]), "seconds": seconds, "metrics": gathered})
    dist.destroy_process_group()


def in_one_process(
    net: nn.Module, draw: Callable[[], tuple[Tensor, Tensor]], test: tuple[Tensor, Tensor], run: Run, parts: int
) -> Result:
    net.train()
    optimizer = torch.optim.Adam(net.parameters(), run.rate)
    older = copy.deepcopy(net)  # the weights before the last update
    trained = older if run.way == "PipeDream-2BW" else net
    torch.manual_seed(run.seed)
    losses: list[Tensor] = []
    begin = time.perf_counter()
    for _ in range(run.steps):
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
    seconds = time.perf_counter() - begin
    net.load_state_dict(net.state_dict() | dict(trained.named_buffers()))
    net.eval()
    with torch.no_grad():
        return {**figures(losses, parts, net(test[0]), test[1]), "seconds": seconds}


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
        tried = {rate: do(path, Run(net, way, rate, 0, steps)) for rate in (RATES if share == 1 else RATES[1:2])}
        best = min(tried, key=lambda rate: tried[rate]["tenths"][-1])
        for seed in range(1, seeds):
            do(path, Run(net, way, best, seed, steps))


def report(path: Path) -> Iterator[str]:
    yield "# What a decoupled pipeline learns"
    yield ""
    yield f"`python benchmarks/pipeline_learning.py`; torch {torch.__version__}, gloo, processes of one thread each."
    yield "Batches of 64 in four micro-batches; Adam; for each way the best of three rates with seed 0. Training loss:"
    yield "over the last tenth of the samples. Mean over seeds (least to greatest). At equal samples. Seconds: of the"
    yield "training loop; backprop and PipeDream-2BW run in one process here."
    found: dict[tuple[str, str], dict[float, list[Result]]] = {}
    for run, result in runs.done(path, Run):
        found.setdefault((run.net, run.way), {}).setdefault(run.rate, []).append(result)
    for net in STEPS:
        yield from ("", f"## {net}", "")
        yield "| way | rate | seeds | training loss | test loss | test error, % | seconds |"
        yield "|---|---|---|---|---|---|---|"
        for way in WAYS:
            by_rate = found.get((net, way), {})
            if by_rate:
                rate = max(by_rate, key=lambda one: (len(by_rate[one]), -by_rate[one][0]["tenths"][-1]))
                results = by_rate[rate]
                columns = [
                    [r["tenths"][-1] for r in results],
                    *([r[k] for r in results] for k in ("test_loss", "error")),
                ]
                cells = [f"{statistics.mean(c):.3f} ({min(c):.3f} to {max(c):.3f})" for c in columns]
                seconds = statistics.mean(r["seconds"] for r in results)
                yield f"| {way} | {rate:g} | {len(results)} | {' | '.join(cells)} | {seconds:.0f} |"


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
