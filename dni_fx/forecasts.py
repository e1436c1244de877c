"""Predictions of memory and time, for a plan and for the candidates that it won against: plain data of a plan."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Forecast", "Outlook", "Verdict", "Weighed", "most_in_parts"]

_WORTH = 0.95  # less is within the error of the predictions


@dataclass(frozen=True)
class Outlook:
    """The predicted memory and time of a training step.

    Attributes:
        peak_bytes: The peak, with parameters, optimizer state and batch.
        step: The time on one device.
        slowest: The time if every segment has a device of its own, and no segment waits for another.
        over_step: The bytes that the step allocates before the optimizer steps, in order: the most in each of at most
            200 parts of the step. Empty: not predicted.
    """

    peak_bytes: int
    step: float
    slowest: float
    over_step: tuple[int, ...] = ()


@dataclass(frozen=True)
class Forecast:
    """The predictions for a plan and for backprop, with `unlock="backward"` and Adam.

    Attributes:
        unit: The unit of times: "FLOPs" or "s".
        resident_bytes: The bytes of parameters, buffers, optimizer state and the batch, which are older than the step.
        synthesizer_bytes: The bytes of the synthesizers' parameters and their optimizer state.
        optimizer_bytes: The bytes that the step allocates, and that are alive while the optimizer steps: all gradients,
            and temporaries.
        backprop: The predictions for backprop.
        cut: The predictions for the plan.
        checkpoint: The predictions for backprop that checkpoints the same segments, all but the last: exact gradients,
            and a second forward pass; None: an older version made the plan.
    """

    unit: str
    resident_bytes: int
    synthesizer_bytes: int
    optimizer_bytes: int
    backprop: Outlook
    cut: Outlook
    checkpoint: Outlook | None = None

    @property
    def saves_memory(self) -> bool:
        return self.cut.peak_bytes < self.backprop.peak_bytes

    @property
    def saves_time(self) -> bool:
        """Whether a step is faster, if every segment has a device of its own."""
        return self.cut.slowest < self.backprop.slowest

    @property
    def saves(self) -> bool:
        """Whether the cuts save 5 % of the memory, or of the time with a device for each segment."""
        memory, time = self.backprop.peak_bytes, self.backprop.slowest
        return self.cut.peak_bytes < _WORTH * memory or self.cut.slowest < _WORTH * time


@dataclass(frozen=True)
class Weighed:
    """A candidate in the search for cuts.

    Attributes:
        after: The last node below each cut.
        synthesizers: The number of its synthesizers.
        value: What the search minimizes, with the charges; see `Verdict`.
        charges: The part of the value that is charged for synthesizers.
        share: The time of its synthesizers, as a share of backprop's step.
        outlook: Its predicted memory and time.
    """

    after: tuple[str, ...]
    synthesizers: int
    value: float
    charges: float
    share: float
    outlook: Outlook


@dataclass(frozen=True)
class Verdict:
    """Why an automatic plan won: its value is at most `value - bound` above the least possible value.

    The value is the load of the heaviest segment (bytes for the objective memory, else time), the static bytes of the
    synthesizers (memory only), and a charge for each synthesizer.

    Attributes:
        objective: What the cuts minimize: "memory" or "throughput".
        places: The number of legal positions of a cut.
        bound: A lower bound of the value of all plans.
        share: The limit for the time of all synthesizers, as a share of backprop's step.
        weighed: This plan and the runners-up, best first.
    """

    objective: str
    places: int
    bound: float
    share: float
    weighed: tuple[Weighed, ...]

    @property
    def optimal(self) -> bool:
        """Whether no plan has a lower value."""
        return self.bound >= self.weighed[0].value * (1 - 1e-9)

    @property
    def share_binds(self) -> bool:
        """Whether a better plan lost because its synthesizers take more than `share`."""
        return any(plan.share > self.share * (1 + 1e-9) for plan in self.weighed)


def most_in_parts(values: Sequence[float], parts: int) -> list[float]:
    """The largest value in each of at most so many parts of a sequence: fewer points, and the same peak."""
    count = min(len(values), parts)
    ends = [len(values) * i // count for i in range(count + 1)] if count else [0]
    return [max(values[i:j]) for i, j in zip(ends[:-1], ends[1:], strict=True)]
