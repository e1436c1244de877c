"""The cut in time: between two windows of a sequence a synthesizer predicts the gradient of all later losses.

A recurrent model is trained window by window. Each window hands its state on to the next one, detached: truncated
backpropagation through time. At the end of a window the synthesizer predicts the gradient of all later losses with
respect to the state; that joins the window's backward pass. In the next window the gradient that arrives at the state
is the target: true within the window, and the next prediction beyond (Jaderberg et al. 2017, Sect. 3.1).
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dni_fx import ops
from dni_fx.errors import DniFxError
from dni_fx.plans import time_name
from dni_fx.runtime.averaging import is_averaged
from dni_fx.runtime.crossing import Crossing
from dni_fx.runtime.dni import Dni
from dni_fx.runtime.time_memory import Memory, Origin
from dni_fx.settings import Settings
from dni_fx.synthesizers import Activation, Factory, Synthesizer, activation_of, make_synthesizer, zero_

__all__ = ["TimeCut", "add_time_cuts", "time_cuts"]

UNKNOWN_CALLS = 20  # calls in a row without a target, after which a warning is given


def add_time_cuts(
    dni: Dni, factories: Mapping[str, Factory], settings: Settings, *, device: torch.device | str = "cpu"
) -> None:
    """Add the synthesizers of the plan's states to `dni`; labels and context are for cuts in depth.

    Raises:
        DniFxError: If a synthesizer is no nn.Module, or carries a state of its own.
    """
    for index, state in enumerate(dni.plan.states):
        activation = activation_of(state, device)
        made = make_synthesizer(factories[time_name(index)], activation, 0)
        if isinstance(made, Synthesizer) and made.carried is not None:
            raise DniFxError("a synthesizer that carries a state of its own cannot predict for one: mlp can")
        own = Settings(unlock="none", training=settings.training)
        dni.add_module(time_name(index), TimeCut(made, activation, own, [tensor.axis for tensor in state.tensors]))


def time_cuts(dni: Dni) -> "list[TimeCut]":
    """The cuts in time, in the order of the plan's states."""
    return [crossing for crossing in dni.crossings.values() if isinstance(crossing, TimeCut)]


class TimeCut(Crossing):
    """The synthesizer of a state, and the memory of the window before.

    The synthesizer takes all tensors of the state as one vector a sample. In a row that equals the row handed on by the
    window before, the sequence goes on. In a row that is zero, or was ended by `reset`, a new sequence begins: no loss
    came after the row handed on, and its target is zero. Any other row may belong to another stream, and gives no
    target.

    Args:
        axes: The batch axis of each tensor of the state.
    """

    in_time = True

    def __init__(self, synthesizer: nn.Module, activation: Activation, settings: Settings, axes: Sequence[int]) -> None:
        super().__init__(synthesizer, activation, settings)
        self.axes = tuple(axes)
        self.discount, self.centered = settings.training.discount, bool(settings.training.centered)
        self.scale_with(None)
        self.horizon = settings.training.horizon
        self.weight = settings.training.auxiliary
        self.auxiliary: nn.Module | None = None
        if self.weight:
            size = activation.features
            self.auxiliary = zero_(nn.Linear(size, size, device=activation.device, dtype=activation.dtype))
        self.segment = ops.Segment(training=settings.training).to(activation.device)
        self.memory = Memory()

    @property
    def own_segment(self) -> ops.Segment:
        return self.segment

    def enter(self, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the states that a window begins with; the gradient that arrives at them trains the synthesizer.

        Raises:
            DniFxError: If a state is no tensor.
        """
        if not all(isinstance(state, Tensor) for state in states):
            raise DniFxError(f"the state has {len(self.axes)} tensors, but not all were given: begin with zeros")
        self.memory.auxiliary = None
        if not (self.training and torch.is_grad_enabled()):
            return states
        ops.check_not_traced(states[0])
        given, before = self.rows_of(states), self.memory.handed_on
        origin = self.memory.origin_of(given)
        self._warn_of_unknown_origin(origin)
        if self.horizon > 1:  # targets are computed after later windows: see `dni_fx.runtime.time_horizon`
            return self.tensors_of(self._learning_due_targets(given), states)
        prediction: Any
        if before is not None and before.shape == given.shape and origin.may_be_known:
            prediction = self(before)
        elif is_averaged():  # DistributedDataParallel waits for gradients of the synthesizer: here they are zero
            before = given.detach()
            prediction = self.predicted(before)
        else:
            return states
        prediction = torch.where(origin.known, prediction, prediction.detach())
        following = ops.boundary(before, prediction, self.segment)
        # A row that has ended gets no gradient back: its target is zero.
        entered = torch.where(origin.goes_on, following, given)
        if self.auxiliary is not None:
            self.memory.auxiliary = self.auxiliary(entered)
        return self.tensors_of(entered, states)

    def _learning_due_targets(self, rows: Tensor) -> Tensor:
        """Return the same rows; when their gradient arrives, the synthesizer learns the targets that are due."""
        for handed_on, gradient, known in self.memory.take_due():
            prediction: Any = self(handed_on)
            prediction = torch.where(known, prediction, prediction.detach())
            target = ops.clipped(gradient, self.segment.clip, len(handed_on))
            rows = ops.learn(rows, prediction, target, self.segment)
        return rows

    def predicted(self, rows: Tensor) -> Tensor:
        """The gradient of the mean loss of all later windows with respect to the rows of a state, (N, F)."""
        return self._scaled(self._raw_prediction(rows, None))

    def leave(self, outputs: tuple[Tensor, ...], states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return outputs and states of a window.

        The backward pass of the outputs also brings the prediction to the states; the returned states are detached.
        """
        if not (self.training and torch.is_grad_enabled()):
            return (*outputs, *states)
        rows = self.rows_of(states)
        with torch.no_grad():
            raw = self._raw_prediction(rows.detach(), None)
            prediction = self._scaled(raw) * self.discount
        if prediction.shape != rows.shape:
            raise DniFxError(f"the synthesizer gave shape {list(prediction.shape)} for a state of {list(rows.shape)}")
        self.memory.remember(rows)
        carrying = ops.carry(outputs, [(rows, prediction), *self._auxiliary(raw)])
        return (*carrying, *[state.detach() for state in states])

    def _auxiliary(self, following: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The auxiliary prediction of this window, and the gradient of its loss.

        From the state that a window begins with, a linear layer predicts the synthetic gradient at the window's end
        (Jaderberg et al. 2017, Sect. 3.1). The loss is half the squared error, as a share of the mean squares. Its
        gradient at the state is part of that state's target, and so reaches the window before.
        """
        prediction = self.memory.take_auxiliary()
        if prediction is None:
            return []
        with torch.no_grad():
            mean_square = (following.square() + prediction.square()).mean()
            mean_square = mean_square.clamp(min=torch.finfo(torch.float32).tiny)
            factor: Any = 1.0 if self.loss_scale is None else self.loss_scale.factor()
            error = (prediction - following) * (self.weight * factor / (mean_square * prediction.numel()))
        return [(prediction, error)]

    def progress(self) -> dict[str, Any]:
        return super().progress() | self.memory.progress()

    def resume(self, progress: Mapping[str, Any]) -> None:
        super().resume(progress)
        self.memory.resume(progress, self.measured.device)

    def forget(self) -> None:
        """Begin as if there had been no window before."""
        self.memory.forget()

    def reset(self, rows: Tensor | None = None) -> None:
        """End the sequences that were handed on: all, or only in `rows`, a bool tensor (N,).

        Raises:
            DniFxError: If `rows` is no mask of the rows of the last window.
        """
        self.memory.end(rows)

    def _warn_of_unknown_origin(self, origin: Origin) -> None:
        """Warn once, if in call after call no row has a known origin."""
        if self.memory.are_unknown(origin, UNKNOWN_CALLS):
            warnings.warn(
                f"in {UNKNOWN_CALLS} calls the synthesizer of a state has learned nothing: no row of the state was "
                "zero, as where a sequence begins, or equal to the row that the call before handed on",
                stacklevel=2,
            )

    def rows_of(self, states: Sequence[Tensor]) -> Tensor:
        """The state as (N, F)."""
        return torch.cat([s.movedim(axis, 0).flatten(1) for s, axis in zip(states, self.axes, strict=True)], 1)

    def tensors_of(self, rows: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The inverse of `rows_of`: tensors shaped like these from rows (N, F)."""
        moved = [state.movedim(axis, 0) for state, axis in zip(like, self.axes, strict=True)]
        parts = rows.split([math.prod(m.shape[1:]) for m in moved], 1)
        whole = [part.reshape(m.shape) for part, m in zip(parts, moved, strict=True)]
        # Clones, since the model may write to a tensor, but not to one of several views that `split` returns.
        return tuple(one.movedim(0, axis).clone() for one, axis in zip(whole, self.axes, strict=True))
