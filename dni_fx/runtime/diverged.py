"""A warning for a synthesizer whose predictions are not finite: the layers below its cut get no gradient."""

import warnings
from typing import Any

from torch import Tensor, nn

from dni_fx.runtime.crossing import MEASURE_EVERY, Crossing
from dni_fx.runtime.dni import Dni

__all__ = ["Diverged"]


class Diverged:
    """Looks whether values were dropped since the last look, and then whether the predictions are finite.

    On a GPU, a look waits for the device: there one step in so many looks.
    """

    def __init__(self) -> None:
        self.dropped: dict[str, int] = {}  # by crossing
        self.warned = False

    def pre_forward(self, dni: Dni) -> None:
        """If the step before has dropped a value, look at the predictions of this step."""
        if self.warned:
            return
        for name, segment in dni.segment_by_crossing().items():
            crossing = dni.crossings[name]
            if segment.skipped.device.type == "cpu" or crossing.steps % MEASURE_EVERY == 1:
                before, self.dropped[name] = self.dropped.get(name, 0), int(segment.skipped)
                if self.dropped[name] > before:
                    self._look_once(name, crossing)

    def _look_once(self, name: str, crossing: Crossing) -> None:
        def post_forward(_crossing: nn.Module, args: tuple[Any, ...], prediction: Tensor | None) -> None:
            handle.remove()
            finite = prediction is None or bool(prediction.isfinite().all())
            if not finite and bool(args[0].isfinite().all()) and not self.warned:
                self.warned = True
                warnings.warn(_message(name), stacklevel=2)

        handle = crossing.register_forward_hook(post_forward)


def _message(name: str) -> str:
    return (
        f"the predictions of {name} are not finite, though its activation is: its synthesizer has diverged, and the "
        "layers below the cut get no gradient. Begin again, and give the synthesizers a smaller learning rate than the "
        "model's, dni_fx.transform(..., optimizer=..., training=Training(lr=0.1)), or an optimizer of their own, "
        "Training(optimizer=torch.optim.Adam)"
    )
