"""Runs that are compared: a training step, and a call in eval mode or with other inputs."""

import contextlib
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dni_fx.model import Inputs, Snapshot, in_train_mode, preserved, seed, tensors_in

__all__ = ["Outcome", "Tensors", "call", "train_step"]

Tensors = dict[str, Tensor]

Around = Callable[[Snapshot], AbstractContextManager[Any]]  # the context in which forward runs

# An unusual number: if the model were traced under this seed, a random number that the trace fixed would go unseen.
_SEED = 7_302_516_489


class Outcome(NamedTuple):
    """The outcome of a run.

    Attributes:
        parameters: Only the parameters that the run itself has changed, and attributes that are tensors.
    """

    outputs: Tensors
    gradients: Tensors
    buffers: Tensors
    parameters: Tensors


def _plainly(_before: Snapshot) -> AbstractContextManager[Any]:
    return contextlib.nullcontext()


def train_step(
    module: nn.Module,
    model: nn.Module,
    inputs: Inputs,
    around: Around = _plainly,
    going_backward: AbstractContextManager[Any] | None = None,
) -> Outcome:
    """Run forward and backward, and forward again: a module that counts its calls returns other values then.

    The second forward runs with gradients, too, since forward may differentiate itself.

    Args:
        module: The module to run: the model, or a capture of it.
        model: The owner of the parameters and buffers.
    """
    with preserved(*dict.fromkeys([model, module])) as before, torch.enable_grad():
        _prepare(module, train=True)
        for parameter in model.parameters():
            parameter.grad = None
        with around(before):
            outputs = _call(module, inputs)
        heads = [o for o in outputs.values() if o.requires_grad]
        if heads:
            with going_backward or contextlib.nullcontext():
                torch.autograd.backward(heads, [torch.randn_like(h) for h in heads])
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        buffers = {name: b.detach().clone() for name, b in model.named_buffers()}
        with around(before):
            again = _call(module, inputs)
        outputs |= {f"{name}, second call": output for name, output in again.items()}
        return Outcome({n: o.detach() for n, o in outputs.items()}, gradients, buffers, before.changed())


def call(module: nn.Module, model: nn.Module, inputs: Inputs, *, train: bool, with_grad: bool) -> Outcome:
    """Run forward once."""
    with preserved(*dict.fromkeys([model, module])) as before, torch.set_grad_enabled(with_grad):
        _prepare(module, train=train)
        names = {name for name, _ in model.named_buffers()}  # a capture that runs the model adds its constants
        outputs = {name: output.detach() for name, output in _call(module, inputs).items()}
        buffers = {name: b.detach().clone() for name, b in model.named_buffers() if name in names}
        return Outcome(outputs, {}, buffers, before.changed())


def _prepare(module: nn.Module, *, train: bool) -> None:
    if train:
        in_train_mode(module)
    else:
        module.eval()
    seed(_SEED)


def _call(module: nn.Module, inputs: Inputs) -> Tensors:
    fresh = inputs.map(lambda t: t.detach().clone())  # a model may write to its input
    with warnings.catch_warnings():  # the model's warnings are for the user's own calls
        warnings.simplefilter("ignore")
        output: Any = module(*fresh.args, **fresh.kwargs)
    tensors = tensors_in(output)
    return {f"{i} of {len(tensors)}": tensor for i, tensor in enumerate(tensors)}
