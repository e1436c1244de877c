"""Targets in time that reach over several windows: BP(lambda) through time (Pemberton and Costa 2024, TMLR).

Without a horizon, a target is the true gradient within one window, and a prediction beyond. With a horizon, the inputs
of the last windows are kept. Once there are as many windows as the horizon has, each is run again, from the last to the
first, and the gradients of all later losses are passed back to the state that the window began with. The target of that
state is then made of true gradients up to the horizon.
The cost is one more forward and backward pass a window, and the memory of one window and of the kept inputs. Gradients
are true for the current weights: they start from the gradients that the outputs had in the first run.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dni_fx.model import Inputs, tensors_in
from dni_fx.runtime.attributes import return_state
from dni_fx.runtime.averaging import is_averaged
from dni_fx.runtime.module import DecoupledModule
from dni_fx.runtime.time_cut import TimeCut, time_cuts
from dni_fx.runtime.time_memory import Origin, Target
from dni_fx.runtime.time_windows import next_window, state_in, state_indices
from dni_fx.settings import check_horizon

__all__ = ["replay_windows"]

PATIENCE = 4  # horizons that windows wait for their gradients: a batch may be skipped


class Start(NamedTuple):
    """The start of a window at one cut in time."""

    handed_on: Tensor | None  # rows of the state that the window before handed on, (N, F); None: no window before
    origin: Origin  # of the rows of the state that this window begins with


@dataclass
class Window:
    """One call of the net.

    Args:
        starts: One for each cut in time.
        random: The states of random generators, for the same dropout masks in the second run.
        gradients: Gradients of outputs other than states, by place; empty until the backward pass.
    """

    inputs: Inputs
    starts: list[Start]
    random: list[Tensor]
    gradients: dict[int, Tensor] = field(default_factory=dict)


class Replay:
    """Keeps the last windows of a net, and runs them again.

    Args:
        horizon: Number of windows that a target reaches over.
        trace: The share of the true gradient at the end of each window; the rest is predicted.
    """

    def __init__(self, net: DecoupledModule, horizon: int, trace: float) -> None:
        self.model: nn.Module = net.dni_uncut()
        self.horizon, self.trace = horizon, trace
        self.current: Window | None = None  # in its forward pass
        self.windows: list[Window] = []

    def forget(self) -> None:
        self.current, self.windows = None, []

    def run(self, net: DecoupledModule, following: list[Start]) -> None:
        """Run the first windows again, once their outputs have gradients, and give the cuts in time their targets.

        Args:
            following: The starts of the window that comes now.
        """
        windows, rest = self.windows[: self.horizon], self.windows[self.horizon :]
        complete = all(window.gradients for window in windows)
        if len(windows) < self.horizon or not (complete or len(rest) > PATIENCE * self.horizon):
            return
        cuts, self.windows = time_cuts(net.dni), rest
        following = rest[0].starts if rest else following
        starts = [*(window.starts for window in windows), following]
        gradients: list[Tensor | None] = [None] * len(cuts)  # at the start of window k + 1
        for k in reversed(range(len(windows))):
            at_end = [self._gradient_at_end(*one) for one in zip(cuts, starts[k + 1], gradients, strict=True)]
            gradients = list(self._gradients_at_start(net, windows[k], at_end))
            for cut, start, gradient in zip(cuts, starts[k], gradients, strict=True):
                rows, origin = start
                goes_on, known = origin
                if rows is not None and len(rows) == len(known) and origin.may_be_known:
                    assert gradient is not None
                    cut.memory.due.append(Target(rows, torch.where(goes_on, gradient, 0.0), known))

    @torch.no_grad()
    def _gradient_at_end(self, cut: TimeCut, following: Start, gradient: Tensor | None) -> Tensor:
        """The gradient of all later losses at the end of a window: true up to the horizon, as far as known.

        Args:
            following: The start of the next window.
            gradient: The gradient at that start; None: beyond the horizon.
        """
        rows, (goes_on, known) = following
        assert rows is not None  # handed on by this window
        predicted = cut.predicted(rows)
        if len(goes_on) != len(rows):
            return cut.discount * predicted
        if gradient is not None:
            predicted = torch.where(goes_on, self.trace * gradient + (1 - self.trace) * predicted, predicted)
        return cut.discount * torch.where(known & ~goes_on, 0.0, predicted)

    def _gradients_at_start(self, net: DecoupledModule, window: Window, at_end: Sequence[Tensor]) -> list[Tensor]:
        """The gradients at the states that a window begins with, (N, F), from the gradients at its end."""
        states = [state.tensors for state in net.dni.plan.states]
        tensors = [tensor for own in states for tensor in own]
        values = [value.detach().requires_grad_() for value in state_in(net, tensors, window.inputs)]
        with torch.enable_grad(), torch.random.fork_rng(devices=_devices(values)):
            _set_random(window.random, _devices(values))
            # Copies: the model may write to its state, which autograd forbids for the leaves themselves.
            again = next_window(net, tensors, window.inputs, [value.clone() for value in values])
            result = self._call(net, again)
        outputs = tensors_in(result)
        given = iter([outputs[place] for place in state_indices(tensors, result)])
        pairs = [(outputs[i], gradient) for i, gradient in window.gradients.items()]
        for cut, own, gradient in zip(time_cuts(net.dni), states, at_end, strict=True):
            handed_on = [next(given) for _ in own]
            pairs += zip(handed_on, cut.tensors_of(gradient, handed_on), strict=True)
        pairs = [(output, gradient) for output, gradient in pairs if output.requires_grad]
        found: Sequence[Tensor | None] = [None] * len(values)
        if pairs:
            roots, gradients = zip(*pairs, strict=True)
            found = torch.autograd.grad(roots, values, gradients, allow_unused=True)
        filled = iter(torch.zeros_like(v) if g is None else g for v, g in zip(values, found, strict=True))
        return [cut.rows_of([next(filled) for _ in own]) for cut, own in zip(time_cuts(net.dni), states, strict=True)]

    def _call(self, net: DecoupledModule, inputs: Inputs) -> Any:
        """Call the model in train mode, as its submodules are; leave the values of buffers unchanged."""
        return_state(net, self.model)  # a user may have replaced parameters of the net
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        before, self.model.training = self.model.training, True
        try:
            return torch.func.functional_call(self.model, buffers, inputs.args, inputs.kwargs)
        finally:
            self.model.training = before

    def progress(self) -> list[Any]:
        """The kept windows, as plain tuples: a checkpoint holds no classes."""
        return [
            (w.inputs.args, w.inputs.kwargs, [(rows, *origin) for rows, origin in w.starts], w.random, w.gradients)
            for w in self.windows
        ]

    def resume(self, progress: Sequence[Any]) -> None:
        """Continue from `progress`."""
        self.windows = [
            Window(Inputs(tuple(args), kwargs), [Start(rows, Origin(*origin)) for rows, *origin in starts], *rest)
            for args, kwargs, starts, *rest in progress
        ]


def replay_windows(net: DecoupledModule) -> None:
    """Let the targets of a net's cuts in time reach as far as the horizon in its plan."""
    training = net.dni.rewrite.training
    if training.horizon == 1 or not net.dni.plan.states:
        return
    net.dni.replay = Replay(net, training.horizon, training.trace)
    net.register_forward_pre_hook(_pre_forward, with_kwargs=True)
    net.register_forward_hook(_post_forward)


def _pre_forward(net: DecoupledModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    replay = net.dni.replay
    if not isinstance(replay, Replay):
        return
    replay.current = None  # a call may have failed
    if not (net.training and torch.is_grad_enabled()):
        return
    if is_averaged():
        check_horizon(net.dni.rewrite.training, "DistributedDataParallel")
    own = {name: value for name, value in kwargs.items() if name != "dni_context"}
    inputs = Inputs(args, own).map(lambda tensor: tensor.detach().clone())
    starts = []
    for cut, state in zip(time_cuts(net.dni), net.dni.plan.states, strict=True):
        values = state_in(net, state.tensors, inputs)
        if not all(isinstance(value, Tensor) for value in values):
            return  # the cut raises an error
        starts.append(Start(cut.memory.handed_on, cut.memory.origin_of(cut.rows_of(values))))
    replay.run(net, starts)
    replay.current = Window(inputs, starts, _random(_devices(inputs.tensors())))


def _post_forward(net: DecoupledModule, _args: tuple[Any, ...], output: Any) -> None:
    replay = net.dni.replay
    if not isinstance(replay, Replay) or replay.current is None:
        return
    window, replay.current = replay.current, None
    replay.windows.append(window)
    states = set(state_indices([tensor for state in net.dni.plan.states for tensor in state.tensors], output))
    hooked: set[int] = set()  # one tensor may be at two places
    for place, tensor in enumerate(tensors_in(output)):
        if place not in states and tensor.requires_grad and id(tensor) not in hooked:
            hooked.add(id(tensor))
            tensor.register_hook(functools.partial(_pre_backward, window, place))


def _pre_backward(window: Window, place: int, gradient: Tensor | None) -> None:
    if gradient is not None:  # None: the loss does not use this output
        window.gradients[place] = gradient.detach().clone()


def _random(devices: Sequence[int]) -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]


def _set_random(states: Sequence[Tensor], devices: Sequence[int]) -> None:
    torch.set_rng_state(states[0])
    for device, state in zip(devices, states[1:], strict=True):
        torch.cuda.set_rng_state(state, device)


def _devices(values: Sequence[Tensor]) -> list[int]:
    return sorted({value.device.index for value in values if value.device.type == "cuda"})
