"""Targets in time that reach over several windows: BP(lambda) through time (Pemberton and Costa 2024, TMLR).

A target is the gradient that one window sends back, and beyond that a prediction. Here the last windows are kept; once
there are as many as the horizon has, each is run once more, from the last to the first, and hands the gradients of all
later ones down to the state that it began with. That state's target is then made of true gradients up to the horizon.
It takes one more forward and backward pass a window, and the memory of one window and of what the kept ones were given.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dni_fx.averaging import is_averaged
from dni_fx.errors import DniFxError
from dni_fx.hooking import HookedModule
from dni_fx.inputs import Inputs, tensors_in
from dni_fx.module import DecoupledModule, plain
from dni_fx.passes.add_time_cuts import time_name
from dni_fx.recurrent import Lesson, TimeCut
from dni_fx.states import next_window, places, state_in

__all__ = ["replay_windows"]

Begin = tuple[Tensor | None, Tensor, Tensor]  # what was handed on, (N, F); which rows go on, and are known, (N, 1)


@dataclass
class Window:
    """One call of the net.

    Args:
        begins: How it begins at each cut in time.
        gradients: Of its outputs, by place; the states' are not among them.
    """

    inputs: Inputs
    begins: list[Begin]
    gradients: dict[int, Tensor] = field(default_factory=dict)


class Replay:
    """The last windows of a net, and what runs them once more.

    Args:
        horizon: How many windows a target reaches over.
        trace: The share of the true gradient at the end of each of them; the rest is predicted.
    """

    def __init__(self, net: DecoupledModule, horizon: int, trace: float) -> None:
        self.model: nn.Module = net.__dict__["dni_original"] if isinstance(net, HookedModule) else plain(net)
        self.horizon, self.trace = horizon, trace
        self.windows: list[Window] = []

    def run(self, net: DecoupledModule, last: list[Begin]) -> None:
        """Teach the cuts in time the targets of the windows kept.

        Args:
            last: How the window after them begins.
        """
        cuts = _cuts(net)
        begins = [*(window.begins for window in self.windows), last]
        later: list[Tensor | None] = [None] * len(cuts)
        for k in reversed(range(len(self.windows))):
            ends = begins[k + 1]
            ahead = [self._ahead(*one) for one in zip(cuts, ends, later, strict=True)]
            later = list(self._sent_back(net, self.windows[k], ahead))
            for cut, (rows, goes_on, known), target in zip(cuts, begins[k], later, strict=True):
                if rows is not None and len(rows) == len(known) and known.any():
                    assert target is not None
                    cut.before.lessons.append(Lesson(rows, torch.where(goes_on, target, 0.0), known))
        self.windows = []

    @torch.no_grad()
    def _ahead(self, cut: TimeCut, end: Begin, later: Tensor | None) -> Tensor:
        """The gradient at the end of a window of all that comes after it: true up to the horizon, as far as known."""
        rows, goes_on, known = end
        assert rows is not None  # it has been run
        predicted = cut.predicted(rows)
        if len(goes_on) != len(rows):
            return cut.discount * predicted
        if later is not None:
            predicted = torch.where(goes_on, self.trace * later + (1 - self.trace) * predicted, predicted)
        return cut.discount * torch.where(known & ~goes_on, 0.0, predicted)

    def _sent_back(self, net: DecoupledModule, window: Window, ahead: Sequence[Tensor]) -> list[Tensor]:
        """The gradients at the states that a window begins with, (N, F), from those at its end."""
        states = [state.tensors for state in net.dni.plan.states]
        tensors = [tensor for own in states for tensor in own]
        values = [value.detach().requires_grad_() for value in state_in(net, tensors, window.inputs)]
        with torch.enable_grad(), torch.random.fork_rng(devices=_devices(values)):
            again = next_window(net, tensors, window.inputs, values)
            result = self._call(again)
        outputs = tensors_in(result)
        given = iter([outputs[place] for place in places(tensors, result)])
        pairs = [(outputs[i], gradient) for i, gradient in window.gradients.items()]
        for cut, own, gradient in zip(_cuts(net), states, ahead, strict=True):
            handed_on = [next(given) for _ in own]
            pairs += zip(handed_on, cut.tensors_of(gradient, handed_on), strict=True)
        pairs = [(output, gradient) for output, gradient in pairs if output.requires_grad]
        found: Sequence[Tensor | None] = [None] * len(values)
        if pairs:
            roots, gradients = zip(*pairs, strict=True)
            found = torch.autograd.grad(roots, values, gradients, allow_unused=True)
        filled = iter(torch.zeros_like(v) if g is None else g for v, g in zip(values, found, strict=True))
        return [cut.rows_of([next(filled) for _ in own]) for cut, own in zip(_cuts(net), states, strict=True)]

    def _call(self, inputs: Inputs) -> Any:
        """In train mode; what buffers hold is left as it is."""
        self.model.training = True
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        return torch.func.functional_call(self.model, buffers, inputs.args, inputs.kwargs)

    def progress(self) -> list[Any]:
        return [(w.inputs.args, w.inputs.kwargs, w.begins, w.gradients) for w in self.windows]

    def resume(self, progress: Sequence[Any]) -> None:
        self.windows = [Window(Inputs(tuple(args), kwargs), begins, own) for args, kwargs, begins, own in progress]


def replay_windows(net: DecoupledModule) -> None:
    """Let the targets of the cuts in time of a net reach as far as its plan says."""
    rewrite = net.dni.plan.rewrite
    if rewrite is None or rewrite.training.horizon == 1 or not net.dni.plan.states:
        return
    net.dni.replay = Replay(net, rewrite.training.horizon, rewrite.training.trace)
    net.register_forward_pre_hook(_begun, with_kwargs=True)
    net.register_forward_hook(_ended)


def _begun(net: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    if not (net.dni.replay is not None and net.training and torch.is_grad_enabled()):
        return
    if is_averaged():
        raise DniFxError("horizon runs windows once more, of which DistributedDataParallel knows nothing: leave it 1")
    replay: Replay = net.dni.replay
    own = {name: value for name, value in kwargs.items() if name != "dni_context"}
    inputs = Inputs(args, own).map(lambda tensor: tensor.detach().clone())
    begins = []
    for cut, state in zip(_cuts(net), net.dni.plan.states, strict=True):
        values = state_in(net, state.tensors, inputs)
        if not all(isinstance(value, Tensor) for value in values):
            return  # the cut says what is wrong
        begins.append((cut.before.rows, *cut.known(cut.rows_of(values))))
    if len(replay.windows) == replay.horizon:
        replay.run(net, begins)
    replay.windows.append(Window(inputs, begins))


def _ended(net: Any, _args: tuple[Any, ...], output: Any) -> None:
    if not (net.dni.replay is not None and net.training and torch.is_grad_enabled()):
        return
    window = net.dni.replay.windows[-1]
    states = set(places([tensor for state in net.dni.plan.states for tensor in state.tensors], output))
    for place, tensor in enumerate(tensors_in(output)):
        if place not in states and tensor.requires_grad:
            tensor.register_hook(functools.partial(_came, window, place))


def _came(window: Window, place: int, gradient: Tensor) -> None:
    before = window.gradients.get(place)
    window.gradients[place] = gradient.detach().clone() if before is None else before + gradient


def _cuts(net: DecoupledModule) -> list[TimeCut]:
    return [net.dni.crossings[time_name(i)] for i in range(len(net.dni.plan.states))]  # type: ignore[misc]


def _devices(values: Sequence[Tensor]) -> list[int]:
    return sorted({value.device.index for value in values if value.device.type == "cuda"})
