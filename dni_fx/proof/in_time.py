"""The check of a cut in time: what goes from one window to the next."""

import torch
from torch import Tensor

from dni_fx import ops
from dni_fx.errors import first_line
from dni_fx.model import Inputs, in_train_mode, preserved, seed, tensors_in
from dni_fx.plans import time_name
from dni_fx.proof.compare import close
from dni_fx.proof.scripted import scripted_synthesizers
from dni_fx.proof.step import SEED, call, forget_windows, gradients_of, output_gradients, without_dni
from dni_fx.proof.subject import Subject, uncut
from dni_fx.runtime import DecoupledModule, next_window, state_indices, time_cuts

__all__ = ["two_windows"]

Gradients = dict[str, Tensor]


def two_windows(subject: Subject) -> tuple[bool, str]:
    """Compare two windows of the cut net with backpropagation.

    With true gradients in time, the windows must train as backpropagation through both at once does; with zero ones,
    as truncated backpropagation does. The target from the second window must be the gradient that its backward pass
    sends back.
    """
    figures = []
    for connected in (True, False):
        try:
            expected, sent_back = _both_uncut(subject, connected)
        except _NotAtOnce as error:
            return True, f"not compared: backpropagation through both at once raises {error}"
        in_time = sent_back if connected else {}
        through, targets = _both_cut(subject.scripted("none", mix=1.0), subject.precise, (in_time, {}))
        in_depth = [{name: t for name, t in window.items() if name not in sent_back} for window in targets]
        predictions = (in_depth[0] | in_time, in_depth[1])
        ours, targets = _both_cut(subject.scripted(subject.unlock), subject.precise, predictions)
        target = {name: t for name, t in targets[1].items() if name in sent_back}
        for got, wanted in ((through, expected), (ours, expected), (target, sent_back)):
            passed, figure = close(got, wanted, narrow=subject.backprop.narrow)
            if not passed:
                return False, f"with {'true' if connected else 'zero'} gradients: {figure}"
            figures.append(figure)
    off = next((figure for figure in figures if figure != "exact"), "exact")
    return True, f"{str(subject.dtype).removeprefix('torch.')}: {off}"


class _NotAtOnce(Exception):
    """The second window writes in place to tensors that the first one keeps for its backward pass."""


def _both_uncut(subject: Subject, connected: bool) -> tuple[Gradients, Gradients]:
    """Run two windows without cuts, and one backward pass through both.

    Args:
        connected: The gradient of the second window reaches the first one, through the state.

    Returns:
        Gradients of the parameters; and the gradients of the second window's states, each as (N, F).
    """
    net, inputs = uncut(subject.exact, subject.precise), subject.precise
    outputs: list[Tensor] = []
    gradients: list[Tensor] = []
    states: list[Tensor] = []  # between the windows
    with preserved(net):
        in_train_mode(net)
        net.zero_grad()
        for number in (SEED, SEED + 1):
            seed(number)
            result = call(net, inputs)
            tensors, indices = tensors_in(result), state_indices(subject.tensors, result)
            trained, their_gradients = output_gradients(tensors, set(indices), number)
            outputs += trained
            gradients += their_gradients
            if states:
                break
            for tensor in (tensors[index] for index in indices):
                state = tensor.clone() if connected and tensor.requires_grad else tensor.detach().requires_grad_()
                state.retain_grad()
                states.append(state)
            inputs = next_window(net, subject.tensors, inputs, states)
        try:
            torch.autograd.backward(outputs, gradients)
        except RuntimeError as error:
            if "inplace" not in str(error):
                raise
            raise _NotAtOnce(first_line(error)) from None
        expected = gradients_of(net)
        net.zero_grad()
    return expected, _rows_by_cut(subject, states)


def _rows_by_cut(subject: Subject, states: list[Tensor]) -> Gradients:
    """The gradients of the states, as one tensor (N, F) for each cut in time."""
    gradients = iter([torch.zeros_like(state) if state.grad is None else state.grad for state in states])
    rows = {}
    dni = subject.exact.dni
    for index, (cut, state) in enumerate(zip(time_cuts(dni), dni.plan.states, strict=True)):
        rows[time_name(index)] = cut.rows_of([next(gradients) for _ in state.tensors])
    return rows


def _both_cut(
    net: DecoupledModule, inputs: Inputs, synthetic: tuple[Gradients, Gradients]
) -> tuple[Gradients, list[Gradients]]:
    """Run two windows with cuts, each with a backward pass of its own.

    Args:
        synthetic: The synthetic gradients in each window, by crossing.

    Returns:
        Gradients of the parameters; and the targets of the synthesizers in each window, by crossing.
    """
    tensors = [tensor for state in net.dni.plan.states for tensor in state.tensors]
    synthesizers = scripted_synthesizers(net)
    targets: list[Gradients] = []
    with preserved(net):
        in_train_mode(net)
        net.zero_grad()
        forget_windows(net)
        for number, window in zip((SEED, SEED + 1), synthetic, strict=True):
            for name, synthesizer in synthesizers.items():
                synthesizer.prediction = window[name] * ops.batch_size(window[name]) if name in window else None
                synthesizer.target = None
            seed(number)
            result = call(net, inputs)
            outputs = tensors_in(result)
            torch.autograd.backward(*output_gradients(outputs, number=number))
            targets.append({n: one.target for n, one in synthesizers.items() if one.target is not None})
            inputs = next_window(net, tensors, inputs, [outputs[index] for index in state_indices(tensors, result)])
        gradients = without_dni(gradients_of(net))
        net.zero_grad()
    return gradients, targets
