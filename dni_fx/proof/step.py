"""Run one training step of a module, and keep outputs, gradients and buffers."""

import warnings
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from dni_fx import ops
from dni_fx.model import Inputs, in_train_mode, preserved, seed, tensors_in
from dni_fx.plans import StateTensor
from dni_fx.runtime import DecoupledModule, Dni, TimeCut, plain, state_indices

__all__ = [
    "RATE",
    "SEED",
    "StepResult",
    "call",
    "context_of",
    "forget_windows",
    "gradients_of",
    "named",
    "output_gradients",
    "outputs_of",
    "step",
    "step_in_place",
    "without_dni",
]

SEED = 7_302_516_490

RATE = 1e-3


@dataclass(frozen=True)
class StepResult:
    """One training step: outputs, buffers by name, and gradients by parameter."""

    outputs: list[Tensor]
    buffers: dict[str, Tensor]
    gradients: dict[str, Tensor]
    narrow: bool  # some value was computed in 16 bits


class Narrow(TorchDispatchMode):
    """See whether any value is computed in 16 bits: an autocast block may be hidden in any module."""

    seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = pytree.tree_leaves(result)
        self.seen |= any(isinstance(t, Tensor) and t.dtype in (torch.float16, torch.bfloat16) for t in leaves)
        return result


def step(
    net: nn.Module,
    inputs: Inputs,
    context: Mapping[str, Tensor] | None = None,
    state: Sequence[StateTensor] = (),
) -> StepResult:
    """Run forward and backward from fixed random output gradients, and put the net back as it was.

    Args:
        state: Outputs that get no gradient.
    """
    with preserved(net):
        return step_in_place(net, inputs, context, state)


def step_in_place(
    net: nn.Module, inputs: Inputs, context: Mapping[str, Tensor] | None = None, state: Sequence[StateTensor] = ()
) -> StepResult:
    """Run the same step; buffers and the statistics of synthesizers stay changed."""
    in_train_mode(net)
    net.zero_grad()
    forget_windows(net)
    seed(SEED)
    with Narrow() as narrow:  # type: ignore[no-untyped-call]
        result = call(net, inputs.map(torch.detach), **(context or {}))
    outputs = tensors_in(result)
    torch.autograd.backward(*output_gradients(outputs, set(state_indices(state, result))))
    gradients = gradients_of(net)
    net.zero_grad()
    buffers = {n: b.detach().clone() for n, b in net.named_buffers() if not n.startswith("dni.")}
    return StepResult([o.detach() for o in outputs], buffers, gradients, narrow.seen)


def forget_windows(net: nn.Module) -> None:
    """Drop what cuts in time remember of earlier windows."""
    for module in net.modules():
        if isinstance(module, TimeCut):
            module.forget()
        if isinstance(module, Dni) and module.replay is not None:
            module.replay.forget()


def output_gradients(
    outputs: list[Tensor], without: Set[int] = frozenset(), number: int = SEED
) -> tuple[list[Tensor], list[Tensor]]:
    """Draw random gradients of a mean loss: the outputs that carry gradient, and a gradient for each.

    Args:
        without: Places of outputs that get no gradient.
        number: The seed.
    """
    trained = [o for i, o in enumerate(outputs) if o.requires_grad and i not in without]
    seed(number)
    return trained, [torch.randn_like(o) / ops.batch_size(o) for o in trained]


def gradients_of(net: nn.Module) -> dict[str, Tensor]:
    """Gradients by the name of their parameter, where there are any."""
    return {n: p.grad for n, p in net.named_parameters() if p.grad is not None}


def outputs_of(net: nn.Module, inputs: Inputs, **context: Any) -> list[Tensor]:
    """Call a net, and return every tensor of its result."""
    return tensors_in(call(net, inputs.map(torch.detach), **context))


def call(net: nn.Module, inputs: Inputs, **context: Any) -> Any:
    """Call a net on copies of the inputs, without its warnings."""
    fresh = inputs.map(torch.clone)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return net(*fresh.args, **fresh.kwargs, **context)


def context_of(net: DecoupledModule, inputs: Inputs) -> dict[str, Tensor]:
    """Make up the labels, or the vector, that a conditioned net takes."""
    rewrite = net.dni.rewrite
    if rewrite.classes is not None:
        return {"dni_context": torch.arange(_context_rows(net, inputs)) % rewrite.classes}
    if rewrite.context_size:
        return {"dni_context": torch.ones(_context_rows(net, inputs), rewrite.context_size)}
    if net.dni.plan.takes_context:
        return {"dni_context": torch.zeros(())}  # the loss of exits in a proof takes any target
    return {}


def _context_rows(net: DecoupledModule, inputs: Inputs) -> int:
    """One row a sample; or one for each row of a crossing tensor that has several a sample."""
    for tensor in (tensor for cut in net.dni.plan.cuts for tensor in cut.tensors if tensor.rows != 1):
        if tensor.batch is not None:
            with preserved(net):
                in_train_mode(net)
                return plain(net).dni_shapes(inputs)[tensor.node][tensor.batch]
    return next((tensor.shape[0] for tensor in inputs.tensors() if tensor.dim()), 1)


def without_dni(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of the model's own parameters."""
    return {name: g for name, g in gradients.items() if not name.startswith("dni.")}


def named(outputs: list[Tensor]) -> dict[str, Tensor]:
    """Give each output a name by its index."""
    return {f"output {i}": o.detach() for i, o in enumerate(outputs)}
