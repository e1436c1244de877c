"""What the tests compare with: gradients of ordinary backpropagation, and synthesizers that know them."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import dni_fx
from dni_fx import ops
from dni_fx.proof.scripted import Scripted as Scripted
from dni_fx.runtime.crossing import Crossing
from dni_fx.runtime.module import DecoupledModule

Call = Callable[[nn.Module], Any]


def loss_of(output: Any) -> Tensor:
    """A loss that depends on every tensor of the output, averaged over the batch."""
    leaves = [t for t in torch.utils._pytree.tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()]
    return sum(((t - 0.3) ** 2).mean() for t in leaves)  # type: ignore[return-value]


def failures(net: Any, args: Any, kwargs: Any) -> dict[str, str]:
    """The checks that a rewritten net does not pass, and what they found."""
    return {
        check.name: check.figure for check in dni_fx.check(net, args, example_kwargs=kwargs).checks if not check.passed
    }


def gradients(module: nn.Module, call: Call) -> dict[str, Tensor]:
    """Gradients of every parameter of the model itself after one step; buffers and the RNG are put back."""
    buffers = {k: v.clone() for k, v in module.named_buffers()}
    module.zero_grad()
    torch.manual_seed(1)
    loss_of(call(module)).backward()
    found = {
        name: p.grad.clone()
        for name, p in module.named_parameters()
        if p.grad is not None and not name.startswith("dni.")
    }
    module.zero_grad()
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            buffer.copy_(buffers[name])
    return found


def tell_truth(net: DecoupledModule, call: Call, loss: Callable[[Any], Tensor] = loss_of) -> None:
    """Give each `Scripted` synthesizer the gradient of its tensor that backpropagation through `net`'s original has.

    Found by running `net`'s own graph with boundaries that let the true gradient through.
    """
    through = copy.deepcopy(net)
    seen: dict[str, Tensor] = {}
    for node in through.graph.nodes:
        if node.target in (ops.decouple, ops.inject):
            names = [prediction.target.removeprefix("dni.") for prediction in node.args[2]]
            node.target = _recorder(names, seen)
    through.recompile()
    through.zero_grad()
    torch.manual_seed(1)
    loss(call(through)).backward()
    for name, crossing in net.dni.named_children():
        if isinstance(crossing, Crossing):
            truth = seen[name].grad
            assert truth is not None
            crossing.synthesizer.prediction = crossing.layout.batch_first(truth) * crossing.layout.samples(truth)


def _recorder(names: list[str], seen: dict[str, Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    def record(outputs: tuple[Tensor, ...], *_: object) -> tuple[Tensor, ...]:
        for name, h in zip(names, outputs, strict=True):
            # What crosses: its gradient is that of everything above the cut, not of this segment's own uses.
            seen[name] = h.clone()
            seen[name].retain_grad()
        return tuple(seen[name].clone() for name in names)  # may be written to above

    record.__name__ = "record"
    return record
