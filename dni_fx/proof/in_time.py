"""The check of a cut in time: what goes from one window to the next."""

from typing import Any

import torch
from torch import Tensor

from dni_fx import ops
from dni_fx.errors import first_line
from dni_fx.model import Inputs, in_train_mode, preserved, seed, tensors_in
from dni_fx.plans import time_name
from dni_fx.proof.compare import close
from dni_fx.proof.step import SEED, call, forget, gradients_of, loss_of, own
from dni_fx.proof.subject import Subject, synthesizers_of, uncut
from dni_fx.runtime import DecoupledModule, next_window, state_positions

__all__ = ["two_windows"]


def two_windows(state: Subject) -> tuple[bool, str]:
    """Told the gradient that the second window sends back, two train as one; told nothing, as truncated ones."""
    figures = []
    for goes_on in (True, False):
        try:
            wanted, sent_back = _both_uncut(state, goes_on)
        except _NotAtOnce as error:
            return True, f"not compared: backpropagation through both at once raises {error}"
        said = sent_back if goes_on else {}
        through, heard = _both_cut(state.told("none", mix=1.0), state.precise, (said, {}))
        truth = [{name: target for name, target in one.items() if name not in sent_back} for one in heard]
        ours, heard = _both_cut(state.told(state.unlock), state.precise, (truth[0] | said, truth[1]))
        target = {name: target for name, target in heard[1].items() if name in sent_back}
        pairs = ((through, wanted), (ours, wanted), (target, sent_back))
        for got, expected in pairs:
            passed, figure = close(got, expected, narrow=state.backprop.narrow)
            if not passed:
                return False, f"told {'the true gradient' if goes_on else 'nothing'}: {figure}"
            figures.append(figure)
    off = next((figure for figure in figures if figure != "exact"), "exact")
    return True, f"{str(state.dtype).removeprefix('torch.')}: {off}"


class _NotAtOnce(Exception):
    """What the model keeps for its backward pass is written to in the next call."""


def _both_uncut(state: Subject, goes_on: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients of two windows' losses, and those of the second's with respect to its states, each as (N, F).

    Args:
        goes_on: Into the first window, through the state that it hands on.
    """
    net, inputs = uncut(state.exact, state.precise), state.precise
    roots: list[Tensor] = []
    begin: list[Tensor] = []
    handed: list[Tensor] = []
    with preserved(net):
        in_train_mode(net)
        net.zero_grad()
        for number in (SEED, SEED + 1):
            seed(number)
            result = call(net, inputs)
            outputs, own = tensors_in(result), state_positions(state.tensors, result)
            heads, gradients = loss_of(outputs, set(own), number)
            roots += heads
            begin += gradients
            if handed:
                break
            for tensor in (outputs[place] for place in own):
                following = tensor.clone() if goes_on and tensor.requires_grad else tensor.detach().requires_grad_()
                following.retain_grad()
                handed.append(following)
            inputs = next_window(net, state.tensors, inputs, handed)
        try:
            torch.autograd.backward(roots, begin)
        except RuntimeError as error:
            if "inplace" not in str(error):
                raise
            raise _NotAtOnce(first_line(error)) from None
        wanted = gradients_of(net)
        net.zero_grad()
    gradients = iter([torch.zeros_like(h) if h.grad is None else h.grad for h in handed])
    sent_back = {}
    for index, one in enumerate(state.exact.dni.plan.states):
        time: Any = state.exact.dni.crossings[time_name(index)]
        sent_back[time_name(index)] = time.rows_of([next(gradients) for _ in one.tensors])
    return wanted, sent_back


def _both_cut(
    net: DecoupledModule, inputs: Inputs, said: tuple[dict[str, Tensor], dict[str, Tensor]]
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Gradients of two windows' losses, each with a backward pass of its own, and what synthesizers heard in each.

    Args:
        said: The gradients that they say, in each.
    """
    tensors = [tensor for state in net.dni.plan.states for tensor in state.tensors]
    heard: list[dict[str, Tensor]] = []
    with preserved(net):
        in_train_mode(net)
        net.zero_grad()
        forget(net)
        for number, truth in zip((SEED, SEED + 1), said, strict=True):
            for name, synthesizer in synthesizers_of(net):
                synthesizer.told = truth[name] * ops.batch_size(truth[name]) if name in truth else None
                synthesizer.heard.target = None
            seed(number)
            result = call(net, inputs)
            outputs = tensors_in(result)
            torch.autograd.backward(*loss_of(outputs, number=number))
            targets = {name: synthesizer.heard.target for name, synthesizer in synthesizers_of(net)}
            heard.append({name: target for name, target in targets.items() if target is not None})
            inputs = next_window(net, tensors, inputs, [outputs[place] for place in state_positions(tensors, result)])
        gradients = own(gradients_of(net))
        net.zero_grad()
    return gradients, heard
