"""A warning for a synthesizer whose predictions are not finite: the layers below its cut get no gradient."""

import warnings
from typing import Any

from torch import Tensor, nn

from dni_fx import ops
from dni_fx.plans import crossing_name
from dni_fx.runtime.crossing import MEASURE_EVERY, Crossing
from dni_fx.runtime.dni import Dni

__all__ = ["Diverged"]


class Diverged:
    """Looks at the predictions that were dropped.

    On a CPU, a segment has compared prediction and activation. On a GPU this would wait for the device in every step:
    there, one step in so many looks whether a value was dropped, and then at the predictions.
    """

    def __init__(self) -> None:
        self.passes = 0
        self.dropped: dict[str, int] = {}  # by crossing
        self.warned = False

    def pre_forward(self, dni: Dni) -> None:
        """Look at the values that the step before has dropped."""
        if self.warned:
            return
        for index, segment in enumerate(dni.segments):
            if segment.diverged is not None and not self.warned:
                self._warn(crossing_name(index, dni.plan.cuts[index].predicted[segment.diverged].node))
        self.passes += 1
        if self.passes % MEASURE_EVERY:
            return
        for segment in dni.segments:
            segment.accumulation.check_divided()
        for name, segment in dni.segment_by_crossing().items():
            crossing = dni.crossings[name]
            if self._waits(segment, crossing):
                before, self.dropped[name] = self.dropped.get(name, 0), int(segment.skipped)
                if self.dropped[name] > before:
                    self._look_once(name, crossing)

    def _waits(self, segment: ops.Segment, crossing: Crossing) -> bool:
        """Whether the segment itself compares nothing."""
        return segment.skipped.device.type != "cpu" or crossing.in_time

    def _look_once(self, name: str, crossing: Crossing) -> None:
        def post_forward(_crossing: nn.Module, args: tuple[Any, ...], prediction: Tensor | None) -> None:
            handle.remove()
            finite = prediction is None or bool(prediction.isfinite().all())
            if not finite and bool(args[0].isfinite().all()) and not self.warned:
                self._warn(name)

        handle = crossing.register_forward_hook(post_forward)

    def _warn(self, name: str) -> None:
        self.warned = True
        warnings.warn(_message(name), stacklevel=2)


def _message(name: str) -> str:
    return (
        f"the predictions of {name} are not finite, though its activation is: its synthesizer has diverged, and the "
        "layers below the cut get no gradient. Begin again, with a smaller learning rate of the synthesizers, "
        "dni_fx.transform(..., optimizer=..., training=dni_fx.Training(lr=0.01)), or of the whole model"
    )
