"""One training step of a module, and what it gave: outputs, gradients, buffers."""

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
from dni_fx.runtime import DecoupledModule, Dni, TimeCut, places

__all__ = [
    "RATE",
    "SEED",
    "Step",
    "call",
    "context_of",
    "forget",
    "gradients_of",
    "loss_of",
    "named",
    "outputs_of",
    "own",
    "step",
    "stepped",
]

SEED = 7_302_516_490

RATE = 1e-3


@dataclass(frozen=True)
class Step:
    """One training step: outputs, and gradients by parameter."""

    outputs: list[Tensor]
    buffers: dict[str, Tensor]
    gradients: dict[str, Tensor]
    narrow: bool  # something was computed in 16 bits


class Narrow(TorchDispatchMode):
    """Sees whether anything is computed in 16 bits: an autocast block may be hidden in any module."""

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
) -> Step:
    """Run forward and backward from fixed random output gradients; leave no trace but in the result.

    Args:
        state: Outputs that get no gradient.
    """
    with preserved(net):
        return stepped(net, inputs, context, state)


def stepped(
    net: nn.Module, inputs: Inputs, context: Mapping[str, Tensor] | None = None, state: Sequence[StateTensor] = ()
) -> Step:
    in_train_mode(net)
    net.zero_grad()
    forget(net)
    seed(SEED)
    with Narrow() as narrow:  # type: ignore[no-untyped-call]
        result = call(net, inputs.map(torch.detach), **(context or {}))
    outputs = tensors_in(result)
    torch.autograd.backward(*loss_of(outputs, set(places(state, result))))
    gradients = gradients_of(net)
    net.zero_grad()
    buffers = {n: b.detach().clone() for n, b in net.named_buffers() if not n.startswith("dni.")}
    return Step([o.detach() for o in outputs], buffers, gradients, narrow.seen)


def forget(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, TimeCut):
            module.forget()
        if isinstance(module, Dni) and module.replay is not None:
            module.replay.forget()


def loss_of(outputs: list[Tensor], without: Set[int] = frozenset(), number: int = SEED) -> tuple[Any, Any]:
    """Where a backward pass begins, and the gradients that it begins with."""
    heads = [o for i, o in enumerate(outputs) if o.requires_grad and i not in without]
    seed(number)
    return heads, [torch.randn_like(h) / ops.batch_size(h) for h in heads]


def gradients_of(net: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad for n, p in net.named_parameters() if p.grad is not None}


def outputs_of(net: nn.Module, inputs: Inputs, **context: Any) -> list[Tensor]:
    return tensors_in(call(net, inputs.map(torch.detach), **context))


def call(net: nn.Module, inputs: Inputs, **context: Any) -> Any:
    fresh = inputs.map(torch.clone)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return net(*fresh.args, **fresh.kwargs, **context)


def context_of(net: DecoupledModule, inputs: Inputs) -> dict[str, Tensor]:
    """Labels, or a vector, for a net that is conditioned."""
    settings = net.dni.plan.rewrite
    assert settings is not None
    rows = ops.batch_size(inputs.tensors()[0]) if inputs.tensors() else 1
    if settings.classes is not None:
        return {"dni_context": torch.arange(rows) % settings.classes}
    return {"dni_context": torch.ones(rows, settings.context_size)} if settings.context_size else {}


def own(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: g for name, g in gradients.items() if not name.startswith("dni.")}


def named(outputs: list[Tensor]) -> dict[str, Tensor]:
    return {f"output {i}": o.detach() for i, o in enumerate(outputs)}
