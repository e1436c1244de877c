"""Train a model in a pipeline: what each of its processes does, from the model and the data to the weights."""

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dni_fx.api import transform
from dni_fx.comparison import Batch, MakeOptimizer, Random, Stream, find_objective
from dni_fx.errors import DniFxError, first_line
from dni_fx.model import preserved
from dni_fx.pipeline.checkpoint import load, save
from dni_fx.pipeline.schedule import ScheduleDecoupled
from dni_fx.pipeline.stage import Stage, stages
from dni_fx.runtime import DecoupledModule

__all__ = ["Run", "Trained", "train"]


@dataclass(frozen=True)
class Run:
    """How to train in a pipeline.

    Attributes:
        stages: The number of processes.
        steps: Of training, each on a batch.
        microbatches: The parts of a batch.
        sync: As for `ScheduleDecoupled`.
        loss: As for `dni_fx.compare`.
        optimizer: A function that makes an optimizer from parameters.
        rewrite: Arguments of `dni_fx.transform`.
        folder: Of checkpoints; the run goes on from the last one there. None: there are none.
        every: The steps from one checkpoint to the next.
        seed: For the batches, the synthesizers' weights, and random numbers in forward.
        timeout: Seconds for which a process waits for another one.
    """

    stages: int
    steps: int
    microbatches: int = 4
    sync: bool = False
    loss: Any = None
    optimizer: MakeOptimizer = torch.optim.Adam
    rewrite: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    every: int = 100
    seed: int = 0
    timeout: float = 60.0

    def __post_init__(self) -> None:
        for name, least in (("stages", 2), ("steps", 1), ("microbatches", 1), ("every", 1)):
            if (value := getattr(self, name)) < least:
                raise DniFxError(f"{name}={value}: {least} or more")


@dataclass(frozen=True)
class Trained:
    """The end of a run, in each process.

    Attributes:
        net: The net; in the process of the last stage, with the weights of all stages.
        ends: The node of the net after which each stage but the last ends.
        losses: In the process of the last stage: the mean over each of its steps.
        begun: The number of steps that a checkpoint had.
        samples: A second.
        metrics: Of each stage, as `ScheduleDecoupled.metrics` returns them.
    """

    net: DecoupledModule
    ends: list[str]
    losses: list[float]
    begun: int
    samples: float
    metrics: list[dict[str, float]]


def train(model: nn.Module, data: Any, run: Run, progress: Callable[[int, float], object]) -> Trained:
    """Train the stage of this process; all processes call it with the same arguments.

    Each process draws all batches: the first stage takes the inputs, the last one the targets.

    Args:
        data: As for `dni_fx.compare`.
        progress: In the process of the last stage, called after each step with the number of steps and the loss.

    Raises:
        DniFxError: If the model cannot be cut into the stages, or an argument is wrong.
    """
    draw = Random(run.seed)
    with draw:
        stream = Stream(data)
        batch = stream.next()
    example = Batch(batch.inputs.map(lambda t: _part(t, run)), _part(batch.target, run))
    with Random(run.seed):
        objective = find_objective(run.loss, _output(model, example), example.target, has_data=True)
        net = _cut(model, example, run, objective.given)
    every = stages(net, run.stages)
    ends = [net.dni.plan.cuts[one.cut.segment.index].after for one in every if one.cut is not None]
    stage = every[dist.get_rank()]
    with _of_the_person("the optimizer"):
        optimizer = run.optimizer(stage.parameters())
    schedule = ScheduleDecoupled(
        stage, run.microbatches, objective.function, optimizer=optimizer, sync=run.sync, timeout=run.timeout
    )
    torch.manual_seed(run.seed + dist.get_rank())
    begun = 0 if run.folder is None else load(run.folder, schedule)
    if begun > run.steps:
        raise DniFxError(f"{run.folder} has a checkpoint of {begun} steps, and the run has {run.steps}")
    losses: list[float] = []
    begin = time.perf_counter()
    try:
        for step in range(1, run.steps + 1):
            if step > 1:
                with draw, _of_the_person("the data"):
                    batch = stream.next()
            if step > begun:
                losses += _step(schedule, batch, step, run)
                if losses:
                    progress(step, losses[-1])
    except BaseException as error:
        schedule.stop(error)
        raise
    seconds = time.perf_counter() - begin
    metrics = schedule.metrics()
    schedule.close()
    samples = len(batch.inputs.tensors()[0]) * (run.steps - begun) / seconds
    return Trained(net, ends, losses, begun, samples, _gathered(net, stage, metrics))


def _step(schedule: ScheduleDecoupled, batch: Batch, step: int, run: Run) -> list[float]:
    """Train on a batch, and save a checkpoint when it is time: the mean loss, in the process of the last stage."""
    found: list[Tensor] = []
    with _of_the_person(f"step {step}"):
        schedule.step(*batch.inputs.args, target=batch.target, losses=found, **batch.inputs.kwargs)
    losses = [float(torch.stack(found).mean())] if found else []
    if losses and not math.isfinite(losses[0]):
        raise DniFxError(f"the loss of step {step} is {losses[0]}")
    if run.folder is not None and (step % run.every == 0 or step == run.steps):
        save(run.folder, schedule)
    return losses


@contextlib.contextmanager
def _of_the_person(what: str) -> Iterator[None]:
    """The model, the loss, the data and the optimizer are the person's code, which may raise any error."""
    try:
        yield
    except DniFxError:
        raise
    except Exception as error:
        raise DniFxError(f"{what} failed: {type(error).__name__}: {first_line(error)}") from error


def _cut(model: nn.Module, example: Batch, run: Run, loss: Any) -> DecoupledModule:
    options: dict[str, Any] = {"cuts": run.stages} | dict(run.rewrite)
    if isinstance(options["cuts"], int) or options["cuts"] == "auto":
        options.setdefault("objective", "throughput")
    if loss is not None:
        options.setdefault("loss", loss)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the net has no cuts")  # the error below says so
        net = transform(model, example.inputs.args, example_kwargs=example.inputs.kwargs, **options)
    if len(net.dni.plan.segments) < run.stages:
        raise DniFxError(
            f"the model has {len(net.dni.plan.segments)} segments for {run.stages} stages: {net.dni.plan.why}"
        )
    return net.train()


def _gathered(net: DecoupledModule, stage: Stage, metrics: dict[str, float]) -> list[dict[str, float]]:
    """The metrics of all stages; the net of the last process gets all weights."""
    found: list[Any] = [None] * stage.count if stage.is_last else []
    dist.gather_object((stage.state_dict(), metrics), found or None, dst=stage.count - 1)
    joined: dict[str, Tensor] = {}
    for weights, _ in found:
        joined |= weights
    if found:
        net.load_state_dict(joined)
    return [one for _, one in found]


def _part(value: Any, run: Run) -> Any:
    """The first microbatch."""
    return value.tensor_split(run.microbatches)[0] if isinstance(value, Tensor) and value.dim() else value


def _output(model: nn.Module, batch: Batch) -> Any:
    try:
        with preserved(model), torch.no_grad():
            return model(*batch.inputs.args, **batch.inputs.kwargs)
    except Exception as error:  # the person's code may raise any error
        raise DniFxError(f"the model does not run on the first batch of the data: {first_line(error)}") from None
