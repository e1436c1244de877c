"""Measure the memory and the time of a training step, each way in turn with backprop."""

import copy
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from dni_fx.bench.live_bytes import allocator_trace, training_peak
from dni_fx.bench.ways import Options, Trainee, backprop, prepared, ways
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
    """What was measured of one way to train.

    Attributes:
        activations: The most bytes alive at once that the step made, gradients of parameters not counted.
        peak: The same, all counted; parameters, optimizer state and the batch are older than the step.
        milliseconds: Median time of a step.
        ratio: Of its time to that of backprop's step just before.
        trace: Bytes alive after each operation.
        failed: Why nothing was measured.
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
    """Measure each way to train a model, one after the other; each in turn with backprop, which is the first row.

    Args:
        model: In train mode; it is copied, and left as it is.
        progress: Called with the name of the way that comes next.

    Raises:
        DniFxError: If the model cannot be trained at all.
    """
    progress("backprop")
    try:
        own = copy.deepcopy(model)
    except Exception as error:
        raise DniFxError(f"the model cannot be copied, so nothing can be compared: {first_line(error)}") from None
    try:
        reference = prepared(backprop(own, inputs, options))
    except Exception as error:
        raise DniFxError(f"the model cannot be trained on these inputs: {first_line(error)}") from None
    yield _measured("backprop", reference, reference)
    for name, make in ways(options):
        progress(name)
        try:
            yield _measured(name, reference, prepared(make(copy.deepcopy(model), inputs, options)))
        except Exception as error:
            yield Row(name, failed=first_line(error))


def _measured(name: str, backprop: Trainee, trainee: Trainee) -> Row:
    trainee.net.zero_grad()
    activations, peak, trace = _gpu_memory(trainee) if trainee.on_gpu else _memory(trainee)
    pairs = [_in_turn(backprop, trainee, first=bool(turn % 2)) for turn in range(trainee.options.steps)]
    tenths = statistics.quantiles([own / other for other, own in pairs], n=10, method="inclusive")
    milliseconds = 1e3 * statistics.median(own for _, own in pairs)
    return Row(name, activations, peak, milliseconds, Ratio(tenths[4], tenths[0], tenths[8]), trace)


def _in_turn(backprop: Trainee, trainee: Trainee, *, first: bool) -> tuple[float, float]:
    """Seconds of both; who comes second has the caches warm."""
    if first:
        own = trainee.seconds()
        return backprop.seconds(), own
    return backprop.seconds(), trainee.seconds()


def _memory(trainee: Trainee) -> tuple[int, int, tuple[int, ...]]:
    """The most that was alive without gradients of parameters; with them; and what was alive after each operation."""
    if not isinstance(trainee.net, torch._dynamo.OptimizedModule):
        memory = training_peak(trainee.step, trainee.net.parameters())
        return max(memory.activations), memory.peak, tuple(point.live for point in memory.trace)
    whole = allocator_trace(trainee.step)  # nothing compiled runs below a dispatch mode
    # Where gradients are there already, they are older than the step.
    return max(allocator_trace(lambda: trainee.step(zero_grad=False))), max(whole), tuple(whole)


def _gpu_memory(trainee: Trainee) -> tuple[int, int, tuple[int, ...]]:
    """The same, as the allocator of the GPU has it."""
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
