"""The cut in time: between two windows of a sequence a synthesizer predicts the gradient of all that is to come.

A recurrent model is trained window by window, and its state handed on from one to the next, cut off: truncated
backpropagation through time. At the end of a window the synthesizer predicts the gradient of all later losses with
respect to the state; that joins the window's backward pass. In the next window the gradient that arrives at the state
is its target: the true one within the window, and the next prediction beyond it (Jaderberg et al. 2017, Sect. 3.1).
"""

import warnings
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dni_fx import ops
from dni_fx.errors import DniFxError
from dni_fx.plans import TimeCutPlan, time_name
from dni_fx.runtime.averaging import is_averaged
from dni_fx.runtime.crossing import Crossing
from dni_fx.runtime.dni import Dni
from dni_fx.settings import Settings
from dni_fx.synthesizers import Activation, Carried, Factory, zero_

__all__ = ["Lesson", "TimeCut", "add_time_cuts", "time_activation"]

STRANGE = 20  # calls after which it is said that nothing is learned


def time_activation(state: TimeCutPlan, device: torch.device | str = "cpu") -> Activation:
    """What the synthesizer of a state sees: its tensors, one after the other, as one vector a sample."""
    first = state.tensors[0]
    shape = (first.shape[first.axis], sum(tensor.features for tensor in state.tensors))
    return Activation(shape, getattr(torch, first.dtype), torch.device(device), 1)


def add_time_cuts(
    dni: Dni, factories: Mapping[str, Factory], settings: Settings, *, device: torch.device | str = "cpu"
) -> None:
    """Give `dni` the synthesizers of its plan's states; labels and context are for cuts in depth.

    Raises:
        DniFxError: If one carries a state of its own.
    """
    for index, state in enumerate(dni.plan.states):
        activation = time_activation(state, device)
        made = factories[time_name(index)](activation, 0)
        if isinstance(getattr(made, "carried", None), Carried):
            raise DniFxError("a synthesizer that carries a state of its own cannot predict for one: mlp can")
        made.to(device=activation.device, dtype=activation.dtype)
        own = Settings(unlock="none", training=settings.training)
        dni.add_module(time_name(index), TimeCut(made, activation, own, [tensor.axis for tensor in state.tensors]))


class Lesson(NamedTuple):
    """What a cut in time is taught of earlier windows."""

    rows: Tensor  # handed on, (N, F)
    target: Tensor  # (N, F)
    known: Tensor  # of which rows it is known, (N, 1)


class TimeCut(Crossing):
    """The synthesizer of a state, and what it has to remember from the window before.

    All tensors of the state are one vector a sample to it. Where the state is the one that the window before handed
    on, the sequence goes on; where it is zero, or `reset` said so, a new one has begun: nothing came after the state
    before, and its target is zero. Of any other state it learns nothing: it may be that of another stream.

    Args:
        axes: The batch axis of each tensor of the state.
    """

    in_time = True

    def __init__(self, synthesizer: nn.Module, activation: Activation, settings: Settings, axes: Sequence[int]) -> None:
        super().__init__(synthesizer, activation, settings)
        self.axes = tuple(axes)
        self.discount, self.centered = settings.training.discount, bool(settings.training.centered)
        if getattr(synthesizer, "own_unit", False):
            setattr(synthesizer, "centered", self.centered)  # noqa: B010  # for mypy, it is a tensor
        self.horizon = settings.training.horizon
        self.weight = settings.training.auxiliary
        self.auxiliary: nn.Module | None = None
        if self.weight:
            size = activation.features
            self.auxiliary = zero_(nn.Linear(size, size, device=activation.device, dtype=activation.dtype))
        self.segment = ops.Segment(training=settings.training).to(activation.device)
        self.before: Any = SimpleNamespace(rows=None, ended=None, next=None, lessons=[], strange=0)

    def enter(self, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The states that a window begins with: the gradient that comes back to them trains the synthesizer.

        Raises:
            DniFxError: If one is no tensor.
        """
        if not all(isinstance(state, Tensor) for state in states):
            raise DniFxError(f"the state has {len(self.axes)} tensors, but not all were given: begin with zeros")
        self.before.next = None
        if not (self.training and torch.is_grad_enabled()):
            return states
        given, before = self.rows_of(states), self.before.rows
        goes_on, known = self.known(given)
        self._warn_of_strangers(known)
        if self.horizon > 1:  # its targets come when later windows have run: see `dni_fx.runtime.time_horizon`
            return self.tensors_of(self._taught(given), states)
        prediction: Any
        if known.any():
            prediction = self(before)
        elif is_averaged():  # who averages gradients waits for the synthesizer's, which are zero
            before = given.detach()
            prediction = self.predicted(before)
        else:
            return states
        prediction = torch.where(known, prediction, prediction.detach())
        following = ops.boundary(before, prediction, self.segment)
        # Of a row that has ended nothing comes back: its target is zero.
        entered = torch.where(goes_on, following, given)
        if self.auxiliary is not None:
            self.before.next = self.auxiliary(entered)
        return self.tensors_of(entered, states)

    def _taught(self, rows: Tensor) -> Tensor:
        """The same rows; when a gradient comes to them, the synthesizer learns what is due."""
        lessons, self.before.lessons = self.before.lessons, []
        for before, target, known in lessons:
            prediction: Any = self(before)
            prediction = torch.where(known, prediction, prediction.detach())
            rows = ops.learn(rows, prediction, ops.clipped(target, self.segment.clip, len(before)), self.segment)
        return rows

    def predicted(self, rows: Tensor) -> Tensor:
        """The gradient of the mean loss of all later windows with respect to the rows of a state, (N, F)."""
        return self._scaled(self._said(rows, None))

    def leave(self, outputs: tuple[Tensor, ...], states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Outputs and states of a window: the ones bring the prediction along in backward, the others are cut off."""
        if not (self.training and torch.is_grad_enabled()):
            return (*outputs, *states)
        rows = self.rows_of(states)
        with torch.no_grad():
            raw = self._said(rows.detach(), None)
            prediction = self._scaled(raw) * self.discount
        if prediction.shape != rows.shape:
            raise DniFxError(f"the synthesizer gave shape {list(prediction.shape)} for a state of {list(rows.shape)}")
        self.before.rows, self.before.ended = rows.detach(), None
        carrying = ops.carry(outputs, [(rows, prediction), *self._auxiliary(raw)])
        return (*carrying, *[state.detach() for state in states])

    def _auxiliary(self, following: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What the auxiliary task said, and the gradient of its loss.

        From the state that a window begins with, it predicts the synthetic gradient at its end (Jaderberg et al. 2017,
        Sect. 3.1): half the squared error, as a share of the mean squares. Its gradient at the state is part of that
        state's target, and so reaches the window before.
        """
        said, self.before.next = self.before.next, None  # its graph ends with the window
        if said is None:
            return []
        with torch.no_grad():
            mean_square = (following.square() + said.square()).mean().clamp(min=torch.finfo(torch.float32).tiny)
            factor: Any = 1.0 if self.loss_scale is None else self.loss_scale.factor()
            error = (said - following) * (self.weight * factor / (mean_square * said.numel()))
        return [(said, error)]

    def progress(self) -> dict[str, Any]:
        return super().progress() | {name: getattr(self.before, name) for name in ("rows", "ended")}

    def resume(self, progress: Mapping[str, Any]) -> None:
        super().resume(progress)
        for name in ("rows", "ended"):
            value = progress[name]
            setattr(self.before, name, None if value is None else value.to(self.measured.device))

    def forget(self) -> None:
        """Begin as if there had been no window before."""
        self.before.rows = self.before.ended = None
        self.before.next, self.before.lessons = None, []

    def reset(self, rows: Tensor | None = None) -> None:
        """The sequences that were handed on have ended: all, or those of which `rows` (N,) is true.

        Raises:
            DniFxError: If `rows` is no mask of the rows of the last window.
        """
        before = self.before.rows
        if before is None:
            return
        if not isinstance(rows, Tensor | None):
            raise DniFxError(
                f"reset takes a bool tensor, one entry a row of the last window, not a {type(rows).__name__}"
            )
        if rows is None:
            rows = torch.ones(len(before), dtype=torch.bool, device=before.device)
        if rows.dtype != torch.bool or rows.shape != (len(before),):
            raise DniFxError(
                f"reset takes a bool tensor of shape [{len(before)}], one entry a row of the last window, not "
                f"{rows.dtype} {list(rows.shape)}"
            )
        self.before.ended = rows if self.before.ended is None else self.before.ended | rows

    def known(self, given: Tensor) -> tuple[Tensor, Tensor]:
        """Whether each row's sequence goes on; and whether it is known what comes after the row before: (N, 1)."""
        before = self.before.rows
        if before is None or not _alike(before, given):
            nothing = torch.zeros(len(given), 1, dtype=torch.bool, device=given.device)
            return nothing, nothing
        given = given.to(before.dtype)  # zeros may be wider than what autocast hands on
        same = (given == before).all(1, keepdim=True)
        ended = ~same & (given == 0).all(1, keepdim=True)
        if self.before.ended is not None:
            ended |= self.before.ended[:, None]
        goes_on = same & ~ended
        return goes_on, goes_on | ended

    def _warn_of_strangers(self, known: Tensor) -> None:
        """Once, if call after call nothing is known of the rows that come in."""
        self.before.strange = 0 if known.any() else self.before.strange + (self.before.rows is not None)
        if self.before.strange == STRANGE:
            warnings.warn(
                f"in {STRANGE} calls the synthesizer of a state has learned nothing: what comes in is neither zero, as "
                "where a sequence begins, nor row by row what the call before handed on",
                stacklevel=2,
            )

    def rows_of(self, states: Sequence[Tensor]) -> Tensor:
        """The state as (N, F)."""
        return torch.cat([s.movedim(axis, 0).flatten(1) for s, axis in zip(states, self.axes, strict=True)], 1)

    def tensors_of(self, rows: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Tensors like these from what `rows_of` would make of them."""
        moved = [state.movedim(axis, 0) for state, axis in zip(like, self.axes, strict=True)]
        parts = rows.split([m[0].numel() for m in moved], 1)
        whole = [part.reshape(m.shape) for part, m in zip(parts, moved, strict=True)]
        # The model may write to it, which no view of several allows.
        return tuple(one.movedim(0, axis).clone() for one, axis in zip(whole, self.axes, strict=True))


def _alike(one: Tensor, other: Tensor) -> bool:
    return (one.shape, one.device) == (other.shape, other.device)
