"""The numbers of a comparison."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dni_fx.plans import Plan

__all__ = ["Comparison", "Difference", "Record"]

_LAST = 5  # the final loss is the mean of the last fifth of the steps


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

    def loss_after(self, steps: int) -> float:
        """The mean loss of the last fifth of so many steps; NaN if there are none."""
        return _mean(self.losses[steps - _window(steps) : steps])


@dataclass(frozen=True)
class Difference:
    """How much higher a loss is than backprop's over the same batches, and two standard errors of that."""

    value: float
    error: float

    @property
    def is_clear(self) -> bool:
        """Whether chance alone hardly explains it."""
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
        plans: By the name of a way, where its model was cut.
    """

    records: tuple[Record, ...]
    steps: int
    of: int
    samples: int
    loss: str
    has_data: bool
    plans: Mapping[str, Plan] = field(default_factory=dict, repr=False)

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

    def difference(self, record: Record) -> Difference:
        """Of a way's final loss from backprop's, in pairs of the same batch."""
        count = _window(self.steps)
        pairs = zip(record.losses[: self.steps][-count:], self.backprop.losses[: self.steps][-count:], strict=True)
        differences = [own - reference for own, reference in pairs]
        spread = statistics.stdev(differences) if len(differences) > 1 else math.nan
        return Difference(_mean(differences), 2 * spread / math.sqrt(max(len(differences), 1)))

    def loss_in_equal_time(self, record: Record) -> float:
        """The loss of a way when the fastest way has done all steps."""
        going = [r.step_seconds for r in self.records if not r.failed and math.isfinite(r.step_seconds)]
        if not going or not math.isfinite(record.step_seconds):
            return math.nan
        return record.loss_after(min(self.steps, int(self.steps * min(going) / record.step_seconds)))

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
                    "loss": record.loss_after(self.steps),
                    "difference": asdict(self.difference(record)),
                    "loss_in_equal_time": self.loss_in_equal_time(record),
                    "step_seconds": record.step_seconds,
                }
            rows.append(row)
        own = {name: getattr(self, name) for name in ("steps", "of", "samples", "loss", "has_data")}
        data: dict[str, Any] = _finite(own | {"ways": rows})
        return data


def _window(steps: int) -> int:
    return max(1, steps // _LAST) if steps else 0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _finite(value: Any) -> Any:
    """The value for JSON, which has no NaN: None in its place."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
