"""The gradients that come from the stage above: late, to synthesizers that are trained by predictions made again."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dni_fx import ops
from dni_fx.errors import DniFxError
from dni_fx.pipeline.batch import copied
from dni_fx.pipeline.stage import Stage

__all__ = ["Targets"]


class Targets:
    """What a stage keeps of its microbatches until the gradients of the stage above come.

    Args:
        sync: Gradients come before the weights change. The graph of each microbatch is kept.
        most: Without `sync`: the number of microbatches for which values are kept; a later gradient is dropped.

    Attributes:
        wanted: Whether the stage uses gradients of the stage above.
    """

    def __init__(self, stage: Stage, sync: bool, most: int) -> None:
        self.stage, self.sync, self.most = stage, sync, most
        cut = stage.cut
        self.wanted = cut is not None and (sync or cut.learns)
        self._kept: dict[int, Sequence[Any]] = {}
        self._ages: list[int] = [0, 0, 0]  # number, sum, greatest
        self._dropped = 0
        if cut is None:
            return
        if cut.learns and not sync and any(getattr(c.synthesizer, "carried", None) is not None for c in cut.crossings):
            raise DniFxError("synthesizers that carry a state from call to call need sync=True")

    @contextmanager
    def coming_later(self) -> Iterator[None]:
        """While a microbatch runs: let synthesizers only predict, and exits train at once, where no gradient comes."""
        cut = None if self.sync else self.stage.cut
        if cut is None:
            yield
            return
        for crossing in cut.crossings:
            crossing.learns = not cut.learns
        if cut.exit is not None:
            cut.exit.trains_at_once = True
        try:
            yield
        finally:
            for crossing in cut.crossings:
                crossing.learns = True
            if cut.exit is not None:
                cut.exit.trains_at_once = False

    def keep(self, number: int, passed: Sequence[Any], kept: Sequence[Any]) -> None:
        """Keep what the gradients of a microbatch will need."""
        if self.sync:
            self._kept[number] = passed
        elif self.wanted:
            self._kept[number] = copied(kept)  # labels may be in a buffer that the loop fills again
            self._kept.pop(number - self.most, None)

    def learn(self, number: int, targets: Sequence[Tensor | None], now: int) -> None:
        """Train the synthesizers by the gradients of a microbatch.

        Args:
            now: The number of the last microbatch.
        """
        values = self._kept.pop(number, None)
        if values is None:
            self._dropped += 1
            return
        age = now - number
        self._ages = [self._ages[0] + 1, self._ages[1] + age, max(self._ages[2], age)]
        cut = self.stage.cut
        assert cut is not None
        if self.sync:
            pairs = [(values[p], t) for p, t in zip(cut.used, targets, strict=True) if t is not None]
            pairs = [(value, t) for value, t in pairs if value.requires_grad]
            if pairs:
                with ops.without_autocast(pairs[0][0].device.type):
                    torch.autograd.backward([value for value, _ in pairs], [t for _, t in pairs])
        else:
            self.stage.learn(values, targets)

    def metrics(self) -> Mapping[str, float]:
        """How many gradients came, how many too late, and how old they were, in updates."""
        count, total, greatest = self._ages
        mean = total / count if count else 0.0
        return {"gradients": count, "too_old": self._dropped, "mean_age": mean, "max_age": greatest}
