"""The next units above a cut, which run once: for the exit at the cut, and for the segment above."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import handle_torch_function, has_torch_function

from dni_fx.ops.decouple import ONE_BY_ONE, boundary, check_not_recomputed
from dni_fx.ops.exit import accumulate, gradients
from dni_fx.ops.precision import without_autocast
from dni_fx.ops.segment import Segment

__all__ = ["begin_unit", "decouple_unit"]


class UnitExit(Protocol):
    """The exit that runs units; `runtime.Exit` is the one class."""

    training: bool
    trains_at_once: bool

    def trained_in_units(self, borrowed: Sequence[Any]) -> list[nn.Parameter]: ...


class _Begin(torch.autograd.Function):
    """The identity on a detached activation, at which backward passes end.

    A leaf would keep the gradient that the backward pass of the segment above computes.
    """

    @staticmethod
    def forward(ctx: Any, detached: Tensor, _anchor: Tensor) -> Tensor:
        return detached

    @staticmethod
    def backward(ctx: Any, _gradient: Tensor) -> tuple[None, None]:
        return None, None


class _WithGradients(torch.autograd.Function):
    """The identity; in backward, parameters get gradients that were computed before."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor | None], *_parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, target: Tensor) -> tuple[Any, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        return target, None, *gradients


def begin_unit(outputs: Sequence[Tensor], exit: UnitExit) -> tuple[Tensor, ...]:
    """Return the outputs of a segment, detached, for the units above the cut; `decouple_unit` ends the units.

    Args:
        outputs: All tensors that cross the cut, attached to the segment's graph.
        exit: In eval mode, and where grad mode is off, return `outputs` unchanged.
    """
    if has_torch_function(outputs):
        traced: tuple[Tensor, ...] = handle_torch_function(begin_unit, outputs, outputs, exit)
        return traced
    if not (exit.training and torch.is_grad_enabled()):
        return tuple(outputs)
    leaves: tuple[Tensor, ...] = _leaves(outputs)
    return leaves


@torch.compiler.disable(reason=ONE_BY_ONE)  # type: ignore[untyped-decorator]
def _leaves(outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    check_not_recomputed()
    anchor = torch.zeros((), requires_grad=True)
    apply: Any = _Begin.apply
    return tuple(apply(output.detach(), anchor) for output in outputs)


def decouple_unit(
    outputs: Sequence[Tensor],
    leaves: Sequence[Tensor],
    value: Tensor,
    prediction: Tensor | None,
    segment: Segment,
    exit: UnitExit,
    borrowed: Sequence[Any],
) -> tuple[Tensor]:
    """Run the backward pass of a segment through the units above it, and return the value of the units.

    The units keep their graph: the segment above runs its backward pass through them, as far as `leaves`. Then their
    parameters get the gradients of the exit, too.

    Args:
        outputs: All tensors that cross the cut, attached to the segment's graph.
        leaves: The same tensors, from `begin_unit`.
        value: The value of the units, attached to `leaves`.
        prediction: The synthetic gradient of `value`; None (eval, no grad): return `value` unchanged.
        segment: Holds the parameters whose gradients the local backward pass accumulates.
        exit: Chooses the parameters to train among `borrowed`, the modules and parameters that the units use.
    """
    tensors = (*outputs, *leaves, value, prediction)
    if has_torch_function(tensors):
        given = (outputs, leaves, value, prediction, segment, exit, borrowed)
        traced: tuple[Tensor] = handle_torch_function(decouple_unit, tensors, *given)
        return traced
    if prediction is None:
        return (value,)
    trained = exit.trained_in_units(borrowed)
    return (_decoupled(outputs, leaves, value, prediction, segment, trained, exit.trains_at_once),)


@torch.compiler.disable(reason=ONE_BY_ONE)  # type: ignore[untyped-decorator]
def _decoupled(
    outputs: Sequence[Tensor],
    leaves: Sequence[Tensor],
    value: Tensor,
    prediction: Tensor,
    segment: Segment,
    trained: Sequence[nn.Parameter],
    at_once: bool,
) -> Tensor:
    synthetic = segment.keep_finite(prediction.detach())
    if synthetic is None:
        segment.post_drop(0, value)
        synthetic = torch.zeros_like(value)
    with without_autocast(value.device.type):
        found = gradients(value, [*leaves, *trained], synthetic.to(value.dtype), retain_graph=not at_once)
    pairs = [(h, g) for h, g in zip(outputs, found, strict=False) if h.requires_grad and g is not None]
    segment.run_backward([h for h, _ in pairs], [g for _, g in pairs])
    if at_once:  # no target comes, which would go on through the units
        accumulate(trained, found[len(leaves) :])
        return value.detach()
    accumulated = segment.accumulated()
    if pairs:
        segment.begin_to_wait(accumulated)
    apply: Any = _WithGradients.apply
    attached: Tensor = apply(value, found[len(leaves) :], *trained) if trained else value
    return boundary(attached, prediction, segment, accumulated, segment.layout(0))


torch.fx.node.has_side_effect(begin_unit)
torch.fx.node.has_side_effect(decouple_unit)
