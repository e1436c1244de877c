"""Targets in time that reach over several windows: BP(lambda) through time (Pemberton and Costa 2024, TMLR).

A target is the gradient that one window sends back, and beyond that a prediction. Here the last windows are kept; once
there are as many as the horizon has, each is run once more, from the last to the first, and hands the gradients of all
later ones down to the state that it began with. That state's target is then made of true gradients up to the horizon.
It takes one more forward and backward pass a window, and the memory of one window and of what the kept ones were given.
True is as of now: from the gradients that its outputs had, but with today's weights.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dni_fx.errors import DniFxError
from dni_fx.model import Inputs, tensors_in
from dni_fx.plans import time_name
from dni_fx.runtime.averaging import is_averaged
from dni_fx.runtime.module import DecoupledModule, share_state
from dni_fx.runtime.time_cut import Lesson, TimeCut
from dni_fx.runtime.time_windows import next_window, state_in, state_positions

__all__ = ["replay_windows"]

PATIENCE = 4  # horizons that windows wait for their gradients: a batch may be skipped

Begin = tuple[Tensor | None, Tensor, Tensor]  # what was handed on, (N, F); which rows go on, and are known, (N, 1)


@dataclass
class Window:
    """One call of the net.

    Args:
        begins: How it begins at each cut in time.
        gradients: Of its outputs, by place; the states' are not among them. Empty until a backward pass has come.
    """

    inputs: Inputs
    begins: list[Begin]
    random: list[Tensor]  # the generators' states: it is run again with the same dropout masks
    gradients: dict[int, Tensor] = field(default_factory=dict)


class Replay:
    """The last windows of a net, and what runs them once more.

    Args:
        horizon: How many windows a target reaches over.
        trace: The share of the true gradient at the end of each of them; the rest is predicted.
    """

    def __init__(self, net: DecoupledModule, horizon: int, trace: float) -> None:
        self.model: nn.Module = net.dni_uncut()
        self.horizon, self.trace = horizon, trace
        self.begun: Window | None = None  # the one that runs
        self.windows: list[Window] = []

    def forget(self) -> None:
        self.begun, self.windows = None, []

    def run(self, net: DecoupledModule, last: list[Begin]) -> None:
        """Teach the cuts in time the targets of the first windows kept, once their gradients have come.

        Args:
            last: How the window begins that comes now.
        """
        windows, rest = self.windows[: self.horizon], self.windows[self.horizon :]
        come = all(window.gradients for window in windows)
        if len(windows) < self.horizon or not (come or len(rest) > PATIENCE * self.horizon):
            return
        cuts, self.windows = _cuts(net), rest
        last = rest[0].begins if rest else last
        begins = [*(window.begins for window in windows), last]
        later: list[Tensor | None] = [None] * len(cuts)
        for k in reversed(range(len(windows))):
            ends = begins[k + 1]
            ahead = [self._ahead(*one) for one in zip(cuts, ends, later, strict=True)]
            later = list(self._sent_back(net, windows[k], ahead))
            for cut, (rows, goes_on, known), target in zip(cuts, begins[k], later, strict=True):
                if rows is not None and len(rows) == len(known) and known.any():
                    assert target is not None
                    cut.before.lessons.append(Lesson(rows, torch.where(goes_on, target, 0.0), known))

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
            _set_random(window.random, _devices(values))
            again = next_window(net, tensors, window.inputs, values)
            result = self._call(net, again)
        outputs = tensors_in(result)
        given = iter([outputs[place] for place in state_positions(tensors, result)])
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

    def _call(self, net: DecoupledModule, inputs: Inputs) -> Any:
        """In train mode, which the net's submodules, its own, are in; what buffers hold is left as it is."""
        share_state(net, self.model, without="dni")  # others may have been put in their place
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        before, self.model.training = self.model.training, True
        try:
            return torch.func.functional_call(self.model, buffers, inputs.args, inputs.kwargs)
        finally:
            self.model.training = before

    def progress(self) -> list[Any]:
        return [(w.inputs.args, w.inputs.kwargs, w.begins, w.random, w.gradients) for w in self.windows]

    def resume(self, progress: Sequence[Any]) -> None:
        self.windows = [Window(Inputs(tuple(args), kwargs), *rest) for args, kwargs, *rest in progress]


def replay_windows(net: DecoupledModule) -> None:
    """Let the targets of the cuts in time of a net reach as far as its plan says."""
    rewrite = net.dni.plan.rewrite
    if rewrite is None or rewrite.training.horizon == 1 or not net.dni.plan.states:
        return
    net.dni.replay = Replay(net, rewrite.training.horizon, rewrite.training.trace)
    net.register_forward_pre_hook(_begun, with_kwargs=True)
    net.register_forward_hook(_ended)


def _begun(net: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    if net.dni.replay is None:
        return
    net.dni.replay.begun = None  # of a call that failed
    if not (net.training and torch.is_grad_enabled()):
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
    replay.run(net, begins)
    replay.begun = Window(inputs, begins, _random(_devices(inputs.tensors())))


def _ended(net: Any, _args: tuple[Any, ...], output: Any) -> None:
    if net.dni.replay is None or net.dni.replay.begun is None:
        return
    window, net.dni.replay.begun = net.dni.replay.begun, None
    net.dni.replay.windows.append(window)
    states = set(state_positions([tensor for state in net.dni.plan.states for tensor in state.tensors], output))
    heard: set[int] = set()  # one tensor may be at two places
    for place, tensor in enumerate(tensors_in(output)):
        if place not in states and tensor.requires_grad and id(tensor) not in heard:
            heard.add(id(tensor))
            tensor.register_hook(functools.partial(_came, window, place))


def _came(window: Window, place: int, gradient: Tensor | None) -> None:
    if gradient is not None:  # None: the loss does not use this output
        window.gradients[place] = gradient.detach().clone()


def _cuts(net: DecoupledModule) -> list[TimeCut]:
    return [net.dni.crossings[time_name(i)] for i in range(len(net.dni.plan.states))]  # type: ignore[misc]


def _random(devices: Sequence[int]) -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]


def _set_random(states: Sequence[Tensor], devices: Sequence[int]) -> None:
    torch.set_rng_state(states[0])
    for device, state in zip(devices, states[1:], strict=True):
        torch.cuda.set_rng_state(state, device)


def _devices(values: Sequence[Tensor]) -> list[int]:
    return sorted({value.device.index for value in values if value.device.type == "cuda"})
