"""Train a model by backprop, with checkpointing and cut, from one seed on the same batches, step by step in turn."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dni_fx.api import example_inputs_of
from dni_fx.arguments import check_arguments
from dni_fx.bench import labels_for, target_for
from dni_fx.comparison.batches import Batch, Stream, made_up
from dni_fx.comparison.losses import find_objective
from dni_fx.comparison.record import Comparison
from dni_fx.comparison.resume import keep, origin, resume
from dni_fx.comparison.trainee import MakeOptimizer, Random, Trainee, trainees
from dni_fx.errors import DniFxError, first_line
from dni_fx.model import in_train_mode, preserved
from dni_fx.runtime import DecoupledModule
from dni_fx.settings import Loss, loss_function

__all__ = ["compare"]

_SCORES = 10  # a score after each tenth of the steps
_MEMORY_AT = 5  # the step in which memory is measured: the first ones make the optimizer's state, and compare losses
_KEEP_EVERY = 30.0  # seconds


def compare(
    model: nn.Module,
    data: Any = None,
    *,
    steps: int = 200,
    ways: Sequence[Mapping[str, Any]] = ({},),
    loss: str | Loss | None = None,
    metric: Callable[[nn.Module], Any] | None = None,
    optimizer: MakeOptimizer = torch.optim.Adam,
    example_inputs: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
    file: str | Path | None = None,
    progress: Callable[[Comparison], object] = lambda comparison: None,
) -> Comparison:
    """What cutting a model costs in loss, and gains in memory and time, on data of one's own.

    Trains copies of the model: by backprop, by backprop with checkpointing, and cut in each of `ways`. All start from
    the same weights and see the same batches; in each step all train on one batch, in turn. On Ctrl-C the step is
    finished, and the result is that of the steps so far.

    Args:
        model: Any module that can be trained. It does not change.
        data: Batches `(inputs, target)`, or dicts of the arguments of a model that returns its own loss: an iterable,
            such as a DataLoader, or a function that returns one. At its end it begins again. None: noise in the shape
            of the example inputs, on which losses mean nothing; without `loss` the cuts get no exits then.
        steps: Training steps of each way, 10 or more.
        ways: Arguments of `dni_fx.transform` for each cut model, such as `[{"cuts": 2}, {"cuts": 4}]`.
        loss: A function of (outputs, target), or the name of one in `torch.nn.functional`. None: cross entropy for
            labels, the mean squared error for floats, or the loss that the model returns.
        metric: A function of the net in eval mode that returns a number, such as its accuracy on held-out data.
        optimizer: A function that makes an optimizer from parameters.
        example_inputs, example_kwargs: As in `dni_fx.transform`; with data, the first batch is the example.
        seed: For the batches, the synthesizers' weights, and the random numbers in forward.
        file: Where to keep the run; if the file is there, the run goes on from it. None: nothing is kept.
        progress: Is called with the result so far, after each step; its records go on to grow.

    Raises:
        DniFxError: If an argument is wrong, or the model cannot be trained on the batches by backprop.
    """
    given = {"model": model, "steps": steps, "ways": ways, "loss": loss, "optimizer": optimizer, "seed": seed}
    check_arguments(given, "compare")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if data is not None and (example_inputs is not None or example_kwargs is not None):
        raise DniFxError("with data= the first batch is the example: leave example_inputs and example_kwargs out")
    draw = Random(seed)
    with draw:
        stream = Stream(data if data is not None else made_up(example_inputs_of(model, example_inputs, example_kwargs)))
        first = stream.next().to(device)
    with Random(seed):
        output = _output(model, first)
        if data is None:
            classes = next((way["classes"] for way in ways if way.get("classes") is not None), None)
            labels = labels_for(first.inputs, classes)
            first = replace(first, target=labels if loss is None else target_for(loss_function(loss), output))
            stream = Stream(made_up(first.inputs, first.target))
        objective = find_objective(loss, output, first.target, has_data=data is not None)
    racing = list(trainees(model, first, ways, objective, optimizer, seed))
    if metric is not None:
        racing[0].check(metric)
    settings = {"seed": seed, "loss": objective.name} | origin(first, racing[0].optimizer)
    done = resume(Path(file), racing, settings) if file is not None and Path(file).exists() else 0
    run = _Run(racing, max(steps, done), _samples(first), objective.name, data is not None)
    kept = time.monotonic()
    with _asked_to_stop() as asked:
        for step in range(1, steps + 1):
            batch = first if step == 1 else _drawn(stream, draw, partial(_keep, file, racing, step - 1, done, settings))
            if step <= done:
                continue
            run.step(step, batch.to(device), metric)
            progress(run.result(step))
            if asked.is_set() or step == steps or time.monotonic() - kept > _KEEP_EVERY:
                _keep(file, racing, step, done, settings)
                kept = time.monotonic()
            if asked.is_set():
                return run.result(step)
    return run.result(max(steps, done))


def _drawn(stream: Stream, draw: Random, on_error: Callable[[], None]) -> Batch:
    """The next batch; before an error of the person's data ends the run, what there is is kept."""
    try:
        with draw:
            return stream.next()
    except Exception:
        on_error()
        raise


def _keep(
    file: str | Path | None, racing: Sequence[Trainee], step: int, done: int, settings: Mapping[str, Any]
) -> None:
    """Keep the run in its file, if there is one, unless the file has come further."""
    if file is not None and step > done:
        keep(Path(file), racing, step, settings)


class _Run:
    """The ways in turn on each batch."""

    def __init__(self, racing: Sequence[Trainee], steps: int, samples: int, loss: str, has_data: bool) -> None:
        self.racing, self.steps, self.samples, self.loss, self.has_data = racing, steps, samples, loss, has_data

    def step(self, step: int, batch: Batch, metric: Callable[[nn.Module], Any] | None) -> None:
        """Let each way train on a batch; the second one finds warm caches, so the first changes from step to step."""
        going = [trainee for trainee in self.racing if not trainee.record.failed]
        first = step % len(going)
        for trainee in going[first:] + going[:first]:
            trainee.train_on(batch, measure_memory=step == _MEMORY_AT)
            if trainee.record.failed:
                continue
            if metric is not None and step * _SCORES // self.steps > (step - 1) * _SCORES // self.steps:
                trainee.score(metric, step)
            trainee.measure_cosines()
        if self.racing[0].record.failed:
            raise DniFxError(f"the model cannot be trained on these batches: {self.racing[0].record.failed}")

    def result(self, steps: int) -> Comparison:
        records = tuple(trainee.record for trainee in self.racing)
        nets = {t.record.name: t.net for t in self.racing if isinstance(t.net, DecoupledModule)}
        return Comparison(records, steps, self.steps, self.samples, self.loss, self.has_data, nets)


def _output(model: nn.Module, batch: Batch) -> Any:
    """What the model returns for a batch in train mode."""
    try:
        with preserved(model), torch.enable_grad():
            in_train_mode(model)
            return model(*batch.inputs.args, **batch.inputs.kwargs)
    except Exception as error:  # the person's code may raise any error
        raise DniFxError(f"the model does not run on the first batch of data=: {first_line(error)}") from None


def _samples(batch: Batch) -> int:
    tensors = batch.inputs.tensors()
    return tensors[0].shape[0] if tensors and tensors[0].dim() else 1


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets; the second Ctrl-C interrupts as always. Other threads have no such signals."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def handle(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
