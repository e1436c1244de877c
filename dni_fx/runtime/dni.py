"""`net.dni`: all modules that a rewrite adds, built from a plan."""

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from dni_fx import ops
from dni_fx.arguments import check_arguments
from dni_fx.model import placed
from dni_fx.plans import Plan, crossing_name, exit_name
from dni_fx.runtime.crossing import MEASURES, Crossing
from dni_fx.runtime.exits import Exit
from dni_fx.runtime.pieces import Pieces
from dni_fx.settings import Loss, Settings, check_scaler, loss_function
from dni_fx.synthesizers import Factory, LossScale, activation_of, make_synthesizer, settings_at

__all__ = ["Dni", "StepsSegments", "build_dni"]


class GradientAverager(Protocol):
    """Averages gradients over processes; `averaging.Averaging` is the one class."""

    def pre_forward(self, net: Any) -> None: ...

    def wait(self) -> None: ...

    def take(self, net: Any) -> list[str]: ...


@runtime_checkable
class StepsSegments(Protocol):
    """The optimizers of step="segment"; `stepping.SegmentOptimizer` is the one class."""

    def copy_for(self, net: Any) -> torch.optim.Optimizer: ...


class KeptWindows(Protocol):
    """The windows that a horizon keeps from call to call; `time_horizon.Replay` is the one class."""

    def forget(self) -> None: ...

    def progress(self) -> list[Any]: ...

    def resume(self, progress: Sequence[Any]) -> None: ...


@dataclass
class LikelyLoss:
    """The loss that a net with labels is likely to be trained by, to measure the factor of the loss.

    Attributes:
        loss: A function of (output, labels).
        tries: Training passes left; then the loss counts as another function.
    """

    loss: Loss
    tries: int = 3


class Dni(nn.Module):
    """All that a rewrite adds to a model: the plan, a `Crossing` for each crossing tensor, the segments."""

    watch: object | None = None  # a `watch.Watch`
    # Class attributes, so that a net has them that an older version pickled:
    accumulate: int | None = None  # the number of batches whose gradients the loop accumulates; None: not known
    given: "weakref.ref[torch.optim.Optimizer] | None" = None  # with step="loop": that `transform` got
    likely_loss: LikelyLoss | None = None  # with labels, until the factor of the loss has been measured
    scaler: torch.amp.GradScaler | None = None  # that multiplies the loss
    unstepped = False  # True: a copy of a net with step="segment", without an optimizer so far

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        assert plan.rewrite is not None
        self.plan, self.rewrite = plan, plan.rewrite
        # With step="segment", the optimizer of all segments; else that of the synthesizers, from Training.optimizer.
        self.optimizer: torch.optim.Optimizer | None = None
        self.averaging: GradientAverager | None = None  # with unlock="backward": averages gradients over processes
        self.replay: KeptWindows | None = None  # with a horizon

    def __getstate__(self) -> dict[str, Any]:
        """Leave optimizers out: a copy of a net has other parameters. A user's loss may not be picklable."""
        unstepped = self.unstepped or isinstance(self.optimizer, StepsSegments)
        return self.__dict__ | {
            "optimizer": None,
            "given": None,
            "unstepped": unstepped,
            "likely_loss": None,
            "scaler": None,
        }

    @property
    def crossings(self) -> dict[str, Crossing]:
        """By name, as in `net.code`."""
        return {name: module for name, module in self.named_children() if isinstance(module, Crossing)}

    @property
    def exits(self) -> dict[int, Exit]:
        """By the index of the cut."""
        names = {exit_name(index): index for index in range(len(self.plan.cuts))}
        return {names[name]: module for name, module in self.named_children() if isinstance(module, Exit)}

    @property
    def synthesizers(self) -> dict[str, nn.Module]:
        """Synthesizers by the name of their crossing, as in `net.code`."""
        return {name: crossing.synthesizer for name, crossing in self.crossings.items()}

    def scale_with(
        self, scaler: torch.amp.GradScaler | None = None, *, accumulate: int | None = None, factor: float = 1.0
    ) -> None:
        """Let predictions follow the factor by which the training loop multiplies the mean loss of a batch.

        Args:
            scaler: The GradScaler that multiplies the loss; None: no GradScaler.
            accumulate: The number of batches whose gradients the loop accumulates, and by which it divides the loss;
                1: it adds whole losses. None: not known; an optimizer raises an error if it steps on added gradients.
            factor: A further factor of the loss, such as the number of processes.

        Raises:
            DniFxError: If an argument is no such number; with a scaler: if targets are clipped, or there is a horizon.
        """
        check_arguments({"accumulate": accumulate, "factor": factor})
        if scaler is not None:
            check_scaler(scaler, self.rewrite.training)
            scaler = scaler if scaler.is_enabled() else None
        self.accumulate, self.scaler, divisor = accumulate, scaler, (accumulate or 1) / factor
        scale = LossScale(scaler, divisor) if scaler is not None or divisor != 1 else None
        for crossing in self.crossings.values():
            crossing.scale_with(scale)
        for exit in self.exits.values():
            exit.scale_with(scale)
        for segment in self.segment_by_crossing().values():
            segment.clip = (self.rewrite.training.clip or 0.0) / divisor
            segment.accumulation.divisor = accumulate

    def reset(self, rows: Tensor | None = None) -> None:
        """Begin new sequences: recurrent synthesizers drop the state that they carry from step to step.

        Args:
            rows: For a cut in time: the rows of the last call whose sequences have ended, a bool tensor; None: all.
                Rows in which the next state is zero end by themselves.
        """
        for crossing in self.crossings.values():
            crossing.reset(rows)

    @property
    def segments(self) -> list[ops.Segment]:
        """All segments but the last, from below: each has a cut above."""
        return [module for module in self.children() if isinstance(module, ops.Segment)]

    def progress(self) -> dict[str, Any]:
        """The part of a checkpoint beside parameters and buffers."""
        found: dict[str, Any] = {name: crossing.progress() for name, crossing in self.crossings.items()}
        return found if self.replay is None else found | {"replay": self.replay.progress()}

    def resume(self, progress: Mapping[str, Any]) -> None:
        """Continue from `progress`."""
        for name, crossing in self.crossings.items():
            crossing.resume(progress[name])
        if self.replay is not None:
            self.replay.resume(progress["replay"])

    def metrics(self) -> dict[str, dict[str, float]]:
        """How well each synthesizer predicts its target, at the last step that was measured (every nineteenth).

        Returns:
            For each crossing: `cosine` between prediction and target, `relative_error` |g - target| / |target|,
            `target_norm` and `prediction_norm`, of the gradient of the mean loss; `steps`, the number of training steps
            so far; and `skipped`, how often a prediction or target of its cut was dropped, since it was not finite.
            Empty until a step has run; NaN until a target has been computed.
        """
        found = {}
        segments = self.segment_by_crossing()
        for name, crossing in self.crossings.items():
            if crossing.steps:
                measured = dict(zip(MEASURES, crossing.measured.tolist(), strict=True))
                found[name] = measured | {"steps": crossing.steps, "skipped": int(segments[name].skipped)}
        return found

    def segment_by_crossing(self) -> dict[str, ops.Segment]:
        """The segment below each crossing; for a cut in time, the cut's own."""
        found = {
            crossing_name(index, tensor.node): segment
            for index, (cut, segment) in enumerate(zip(self.plan.cuts, self.segments, strict=True))
            for tensor in cut.predicted
        }
        crossings = self.crossings.items()
        return found | {name: crossing.own_segment for name, crossing in crossings if crossing.own_segment is not None}


def build_dni(
    plan: Plan, factories: Mapping[str, Factory], settings: Settings, *, device: torch.device | str = "cpu"
) -> Dni:
    """The submodule `dni` for a plan; its segments hold no parameters yet.

    Args:
        factories: The factory of the synthesizer at each crossing.

    Raises:
        DniFxError: If a synthesizer is no nn.Module.
    """
    dni = Dni(plan)
    for index, cut in enumerate(plan.cuts):
        for tensor in cut.predicted:
            name = crossing_name(index, tensor.node)
            activation = activation_of(tensor, device)
            own = settings_at(tensor, settings)
            made = make_synthesizer(factories[name], activation, own.size)
            dni.add_module(name, Crossing(made, activation, own, ops.Layout.of(tensor)))
        if cut.exit is not None:
            loss = None if settings.loss is None else loss_function(settings.loss)
            dni.add_module(exit_name(index), Exit(cut.exit, cut.predicted, loss))
        segment = ops.Segment(settings.mix, settings.training, index)
        placed(segment, None, device)
        segment.layouts = tuple(map(ops.Layout.of, cut.predicted))
        dni.add_module(f"segment{index}", segment)
    if any(segment.recomputed for segment in plan.segments):
        dni.add_module("pieces", Pieces())
    return dni
