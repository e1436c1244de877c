"""Measure memory and time of a training step; steps of each way alternate with steps of backprop."""

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from dni_fx.bench.live_bytes import allocator_trace, training_peak
from dni_fx.bench.options import Options
from dni_fx.bench.ways import Trainee, backprop, copied_model, prepared, ways
from dni_fx.errors import DniFxError, first_line
from dni_fx.model import Inputs

__all__ = ["Row", "measure"]


class Ratio(NamedTuple):
    """Median, and 10th and 90th percentile."""

    median: float
    low: float
    high: float


NOT_MEASURED = Ratio(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Row:
    """The numbers of one way to train.

    Attributes:
        activations: The most bytes alive at once that the step allocated, without gradients of parameters.
        peak: The most bytes alive at once that the step allocated. Parameters, optimizer state and the batch are
            older than the step.
        milliseconds: Median time of a step.
        ratio: The time of a step, divided by the time of a step of backprop just before or after.
        trace: Bytes alive after each operation.
        failed: The reason why there are no numbers.
    """

    name: str
    activations: int = 0
    peak: int = 0
    milliseconds: float = 0.0
    ratio: Ratio = NOT_MEASURED
    trace: tuple[int, ...] = ()
    failed: str = ""


def measure(
    model: nn.Module, inputs: Inputs, options: Options, progress: Callable[[str], None] = lambda name: None
) -> Iterator[Row]:
    """Measure each way to train a model; backprop is the first row.

    Args:
        model: In train mode; `measure` trains copies.
        progress: Is called with the name of each row before its measurement.

    Raises:
        DniFxError: If the model cannot be copied, or not be trained with backprop.
    """
    progress("backprop")
    own = copied_model(model)
    try:
        reference = prepared(backprop(own, inputs, options))
    except Exception as error:
        raise DniFxError(f"the model cannot be trained on these inputs: {first_line(error)}") from None
    yield _measured("backprop", reference, reference)
    for name, make in ways(options):
        progress(name)
        try:
            yield _measured(name, reference, prepared(make(copied_model(model), inputs, options)))
        except Exception as error:
            yield Row(name, failed=first_line(error))


def _measured(name: str, backprop: Trainee, trainee: Trainee) -> Row:
    trainee.net.zero_grad()
    activations, peak, trace = _gpu_memory(trainee) if trainee.on_gpu else _memory(trainee)
    pairs = [_time_both(backprop, trainee, trainee_first=bool(turn % 2)) for turn in range(trainee.options.steps)]
    tenths = statistics.quantiles([own / reference for reference, own in pairs], n=10, method="inclusive")
    milliseconds = 1e3 * statistics.median(own for _, own in pairs)
    return Row(name, activations, peak, milliseconds, Ratio(tenths[4], tenths[0], tenths[8]), trace)


def _time_both(backprop: Trainee, trainee: Trainee, *, trainee_first: bool) -> tuple[float, float]:
    """Seconds of a step of both. The second one finds warm caches, so the order alternates."""
    if trainee_first:
        own = trainee.seconds()
        return backprop.seconds(), own
    return backprop.seconds(), trainee.seconds()


def _memory(trainee: Trainee) -> tuple[int, int, tuple[int, ...]]:
    """The most bytes alive without gradients of parameters; with them; and the bytes alive after each operation."""
    if not isinstance(trainee.net, torch._dynamo.OptimizedModule):
        memory = training_peak(trainee.step, trainee.net.parameters())
        return max(memory.activations), memory.peak, tuple(point.live for point in memory.trace)
    whole = allocator_trace(trainee.step)  # a dispatch mode does not see compiled code
    # Without zero_grad, gradients are older than the step and do not count.
    return max(allocator_trace(lambda: trainee.step(zero_grad=False))), max(whole), tuple(whole)


def _gpu_memory(trainee: Trainee) -> tuple[int, int, tuple[int, ...]]:
    """The same three numbers; the peaks are those of the GPU's allocator."""
    peaks = []
    for zero_grad in (True, False):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        trainee.step(zero_grad=zero_grad)
        torch.cuda.synchronize()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    if isinstance(trainee.net, torch._dynamo.OptimizedModule):
        return peaks[1], peaks[0], ()
    memory = training_peak(trainee.step, trainee.net.parameters())
    return max(memory.activations), peaks[0], tuple(point.live for point in memory.trace)
