"""`net.dni`: everything that a rewrite adds, and how it is built from a plan."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dni_fx import ops
from dni_fx.errors import DniFxError
from dni_fx.plans import Plan, crossing_name
from dni_fx.runtime.crossing import MEASURES, Crossing, LossScale
from dni_fx.settings import Settings, Training, check_scaler, loss_function
from dni_fx.synthesizers import Activation, Factory, Link, LossHead, Outcome

if TYPE_CHECKING:
    from dni_fx.runtime.averaging import Averaging

__all__ = ["Interfaces", "build_dni"]


class Interfaces(nn.Module):
    """All that a rewrite adds to a model: the plan, a `Crossing` for each crossing tensor, the segments."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        # That of all segments, with step="segment"; else that of the synthesizers, where they have one of their own.
        self.optimizer: torch.optim.Optimizer | None = None
        self.averaging: Averaging | None = None  # with unlock="backward": averages gradients over processes
        self.replay: Any = None  # with a horizon: what keeps the last windows, a `dni_fx.runtime.time_horizon.Replay`

    def __getstate__(self) -> dict[str, Any]:
        """A copy of a net has no optimizer: its parameters are others."""
        return self.__dict__ | {"optimizer": None}

    @property
    def crossings(self) -> dict[str, Crossing]:
        """By name, as in `net.code`."""
        return {name: module for name, module in self.named_children() if isinstance(module, Crossing)}

    @property
    def synthesizers(self) -> dict[str, nn.Module]:
        """Synthesizers by the name of their crossing, as in `net.code`."""
        return {name: crossing.synthesizer for name, crossing in self.crossings.items()}

    def scale_with(self, scaler: torch.amp.GradScaler) -> None:
        """Let predictions follow the scale of the loss.

        Raises:
            DniFxError: If targets are clipped.
        """
        check_scaler(scaler, self.plan.rewrite.training if self.plan.rewrite is not None else Training())
        for crossing in self.crossings.values():
            crossing.loss_scale = LossScale(scaler) if scaler.is_enabled() else None
            if getattr(crossing.synthesizer, "own_unit", False):
                setattr(crossing.synthesizer, "loss_scale", crossing.loss_scale)  # noqa: B010  # for mypy, it is a tensor

    def reset(self, rows: Tensor | None = None) -> None:
        """New sequences begin: recurrent synthesizers drop the state that they carry from step to step.

        Args:
            rows: For a cut in time: where they do, a bool a row of the last call; None: everywhere. It is not needed
                where the state that comes in is zero.
        """
        for crossing in self.crossings.values():
            crossing.reset(rows)

    @property
    def segments(self) -> list[ops.Segment]:
        """All but the last, from below: each has a cut above it."""
        return [module for module in self.children() if isinstance(module, ops.Segment)]

    def progress(self) -> dict[str, Any]:
        """Where a run is, beside parameters and buffers."""
        found: dict[str, Any] = {name: crossing.progress() for name, crossing in self.crossings.items()}
        return found if self.replay is None else found | {"replay": self.replay.progress()}

    def resume(self, progress: Mapping[str, Any]) -> None:
        """Go on from where `progress` was."""
        for name, crossing in self.crossings.items():
            crossing.resume(progress[name])
        if self.replay is not None:
            self.replay.resume(progress["replay"])

    def metrics(self) -> dict[str, dict[str, float]]:
        """How well each synthesizer predicts its target, at the last step that was looked at (every nineteenth).

        Returns:
            For each crossing: `cosine` between prediction and target, `relative_error` |g - target| / |target|,
            `target_norm` and `prediction_norm`, of the gradient of the mean loss; `steps`, the number of training steps
            so far; and `skipped`, how often a prediction or target of its cut was dropped, for it was not finite.
            Empty until a step has run; NaN where no target has come back.
        """
        found = {}
        segments = self.segments
        for name, crossing in self.crossings.items():
            if crossing.steps:
                own = getattr(crossing, "segment", None)  # of a cut in time
                segment = own or segments[int(name.removeprefix("cut").split("_")[0])]
                measured = dict(zip(MEASURES, crossing.measured.tolist(), strict=True))
                found[name] = measured | {"steps": crossing.steps, "skipped": int(segment.skipped)}
        return found


def build_dni(
    plan: Plan, factories: Mapping[str, Factory], settings: Settings, *, device: torch.device | str = "cpu"
) -> Interfaces:
    """The submodule `dni` for a plan; its segments hold no parameters yet.

    Args:
        factories: What makes the synthesizer of each crossing.
    """
    dni = Interfaces(plan)
    for index, cut in enumerate(plan.cuts):
        for tensor in cut.tensors:
            name = crossing_name(index, tensor.node)
            dtype = getattr(torch, tensor.dtype)
            axis = tensor.axis % len(tensor.shape)
            activation = Activation(tensor.shape, dtype, torch.device(device), axis)
            made = factories[name](activation, settings.size)
            if not isinstance(made, nn.Module):
                raise DniFxError(f"the synthesizer for {name} is a {type(made).__name__}, not an nn.Module")
            made.to(device=activation.device, dtype=dtype)
            dni.add_module(name, Crossing(made, activation, settings))
        dni.add_module(f"segment{index}", ops.Segment(settings.mix, settings.training, index).to(device))
    _tell_critics(dni, settings)
    return dni


def _tell_critics(dni: Interfaces, settings: Settings) -> None:
    """Let each critic hear the values of the one at the next cut, and the last one those of the model's output."""
    heads = {name: s for name, s in dni.synthesizers.items() if isinstance(s, LossHead)}
    if not any(head.fits_value for head in heads.values()):
        return
    assert settings.loss is not None
    outcome = Outcome(loss_function(settings.loss))
    dni.add_module("outcome", outcome)
    below: list[Link] = []
    for index, cut in enumerate(dni.plan.cuts):
        here = [heads[name].link for t in cut.tensors if (name := crossing_name(index, t.node)) in heads]
        if here:
            here[0].below, below = below, here
    outcome.link.below = below
