"""The numbers of a comparison."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dni_fx.json_data import finite
from dni_fx.runtime import DecoupledModule

__all__ = ["Comparison", "Difference", "Record"]

_LAST = 5  # the final loss is the mean of the last fifth of the steps
_BLOCKS, _STUDENT = 5, 2.776  # the 97.5 % point of Student's t with 4 degrees of freedom


@dataclass
class Record:
    """What one way to train has given so far.

    Attributes:
        name: Of the way, such as "4 segments, exit".
        segments: The number of segments; 1: no cut.
        losses: Of each batch, before the net trains on it.
        seconds: Of each step; NaN where memory was measured, which takes longer.
        scores: Step and score, in eval mode.
        activations: The most bytes alive at once that a step allocated, without gradients of parameters.
        peak: The most bytes alive at once that a step allocated.
        cosines: By crossing: the cosine between prediction and target when it was measured last.
        failed: The reason why the way trained no further.
    """

    name: str
    segments: int = 1
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    scores: list[tuple[int, float]] = field(default_factory=list)
    activations: int = 0
    peak: int = 0
    cosines: dict[str, float] = field(default_factory=dict)
    failed: str = ""

    @property
    def step_seconds(self) -> float:
        """The median time of a step; NaN before one was measured."""
        measured = [seconds for seconds in self.seconds if math.isfinite(seconds)]
        return statistics.median(measured) if measured else math.nan

    def loss_after(self, step: int, count: int) -> float:
        """The mean loss of the last `count` steps up to a step; NaN if there are none."""
        return _mean(self.losses[max(0, step - count) : step])


@dataclass(frozen=True)
class Difference:
    """How much higher a loss is than another over the same batches, and half its 95 % interval.

    The interval is that of the noise from batch to batch in one run; another seed differs more.
    """

    value: float
    error: float  # NaN: too few steps

    @property
    def is_clear(self) -> bool:
        """Whether zero lies outside of the interval."""
        return abs(self.value) > self.error


@dataclass(frozen=True)
class Comparison:
    """Ways to train a model, beside each other on the same batches; `print` shows the verdict and the table.

    Attributes:
        records: One for each way; backprop is the first.
        steps: Steps that every way has done, unless it failed.
        of: The steps that were asked for.
        samples: In a batch.
        loss: The name of the loss.
        has_data: Whether the batches are the person's, not noise.
        nets: The trained nets, by the name of their way.
    """

    records: tuple[Record, ...]
    steps: int
    of: int
    samples: int
    loss: str
    has_data: bool
    nets: Mapping[str, DecoupledModule] = field(default_factory=dict, repr=False)

    @property
    def backprop(self) -> Record:
        return self.records[0]

    @property
    def interrupted(self) -> bool:
        """Whether the run ended before its last step."""
        return self.steps < self.of

    @property
    def cut(self) -> list[Record]:
        """The records of cut models that have not failed."""
        return [record for record in self.records if record.segments > 1 and not record.failed]

    @property
    def last(self) -> int:
        """The number of steps whose mean loss is the final loss: a fifth of all."""
        return max(1, self.steps // _LAST)

    def final_loss(self, record: Record) -> float:
        """The mean loss of a way over its last steps."""
        return record.loss_after(self.steps, self.last)

    def difference(self, record: Record, other: Record | None = None) -> Difference:
        """Of a way's final loss from that of another, or of backprop, in pairs of the same batch.

        Successive steps of a net are alike, so the interval is that of the means of five blocks of steps (Student's t).
        """
        losses = [one.losses[self.steps - self.last : self.steps] for one in (record, other or self.backprop)]
        differences = [own - reference for own, reference in zip(*losses, strict=True)]
        length = len(differences) // _BLOCKS
        if not length:
            return Difference(_mean(differences), math.nan)
        means = [_mean(differences[i * length : (i + 1) * length]) for i in range(_BLOCKS)]
        return Difference(_mean(differences), _STUDENT * statistics.stdev(means) / math.sqrt(_BLOCKS))

    def loss_in_equal_time(self, record: Record) -> float:
        """The loss of a way, over as many steps, when the fastest way has done all steps; NaN: not measured yet."""
        going = [r.step_seconds for r in self.records if not r.failed and math.isfinite(r.step_seconds)]
        if not going or not math.isfinite(record.step_seconds):
            return math.nan
        return record.loss_after(math.floor(self.steps * min(going) / record.step_seconds + 1e-9), self.last)

    def __str__(self) -> str:
        from dni_fx.comparison.table import as_text  # which draws a `Comparison`

        return as_text(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the attributes, and of each record the figures of the table."""
        rows = []
        for record in self.records:
            row: dict[str, Any] = asdict(record)
            if not record.failed:
                row["final"] = {
                    "loss": self.final_loss(record),
                    "difference": asdict(self.difference(record)),
                    "loss_in_equal_time": self.loss_in_equal_time(record),
                    "step_seconds": record.step_seconds,
                }
            rows.append(row)
        own = {name: getattr(self, name) for name in ("steps", "of", "samples", "loss", "has_data")}
        data: dict[str, Any] = finite(own | {"ways": rows})
        return data


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
