"""The boundary of unlock="backward": a segment runs its backward pass during the forward pass."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import handle_torch_function, has_torch_function

from dni_fx.errors import BackwardOrderError, DniFxError
from dni_fx.ops.gradients import clipped
from dni_fx.ops.inject import injected
from dni_fx.ops.layout import Layout
from dni_fx.ops.segment import TWICE, Accumulated, Segment, check_not_erased

__all__ = ["boundary", "check_not_recomputed", "decouple", "writable"]

ONE_BY_ONE = 'unlock="backward" runs a backward pass at every cut: segments are compiled one by one'


class _Boundary(torch.autograd.Function):
    """The identity on an activation, whose gradient is the target of the synthesizer."""

    @staticmethod
    def forward(
        ctx: Any,
        activation: Tensor,
        prediction: Tensor,
        accumulated: Sequence[Accumulated],
        segment: Segment,
        layout: Layout,
    ) -> Tensor:
        ctx.samples, ctx.axis = layout.samples(activation), layout.axis(activation)
        ctx.done = False
        ctx.accumulated, ctx.segment, ctx.generation = accumulated, segment, segment.generation
        ctx.forward_pass = segment.forward_pass
        ctx.save_for_backward(prediction)
        return activation

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, target: Tensor) -> tuple[Tensor | None, ...]:
        (prediction,) = ctx.saved_tensors
        if ctx.done:
            raise BackwardOrderError(TWICE)
        ctx.done = True
        ctx.segment.accumulation.post_target()
        if ctx.generation == ctx.segment.generation:
            check_not_erased(ctx.accumulated)
        if ctx.forward_pass is not None:
            ctx.forward_pass.reach()
        within = clipped(target, ctx.segment.clip, ctx.samples, ctx.axis)
        error = (prediction - within.to(prediction.dtype)).mul_(ctx.samples)
        return target if ctx.needs_input_grad[0] else None, ctx.segment.keep_finite(error), None, None, None


def decouple(
    outputs: Sequence[Tensor],
    detached: Sequence[Tensor],
    predictions: Sequence[Tensor | None],
    segment: Segment,
) -> tuple[Tensor, ...]:
    """Run a segment's backward pass now, from predicted gradients, and return its outputs, detached.

    The local backward pass starts from all crossing tensors at once, and frees the segment's graph. The target of
    each prediction arrives when the next segment runs its own backward pass.

    Args:
        outputs: All tensors that cross the cut, attached to the segment's graph.
        detached: The same tensors, detached: the inputs of the synthesizers.
        predictions: One for each tensor, of its shape; None (eval, no grad): return `outputs` unchanged.
        segment: Holds the parameters whose gradients the local backward pass accumulates.

    Raises:
        BackwardOrderError: In a later backward pass, if the gradients were erased in between.
    """
    tensors = (*outputs, *detached, *predictions)
    if has_torch_function(tensors):
        traced: tuple[Tensor, ...] = handle_torch_function(decouple, tensors, outputs, detached, predictions, segment)
        return traced
    if any(prediction is None for prediction in predictions):
        return tuple(outputs)
    cut_off: tuple[Tensor, ...] = _decoupled(outputs, detached, predictions, segment)
    return cut_off


@torch.compiler.disable(reason=ONE_BY_ONE)  # type: ignore[untyped-decorator]
def _decoupled(
    outputs: Sequence[Tensor], detached: Sequence[Tensor], predictions: Sequence[Tensor | None], segment: Segment
) -> tuple[Tensor, ...]:
    check_not_recomputed()
    if segment.next_mix() == 1.0:  # the warm-up
        following = injected(outputs, predictions, segment, 1.0)
        segment.post_forward(following)
        return following
    roots, gradients = [], []
    for place, (h, prediction) in enumerate(zip(outputs, predictions, strict=True)):
        if h.requires_grad and prediction is not None:
            synthetic = segment.keep_finite(prediction.detach())
            if synthetic is None:
                segment.post_drop(place, h)
            else:
                roots.append(h)
                gradients.append(synthetic.to(h.dtype))
    segment.run_backward(roots, gradients)
    accumulated = segment.accumulated()
    if roots:
        segment.begin_to_wait(accumulated)
    return tuple(
        boundary(h_in, p, segment, accumulated, segment.layout(index))
        for index, (h_in, p) in enumerate(zip(detached, predictions, strict=True))
    )


def boundary(
    activation: Tensor,
    prediction: Tensor | None,
    segment: Segment,
    accumulated: Sequence[Accumulated] = (),
    layout: Layout = Layout(),  # noqa: B008  # frozen
) -> Tensor:
    """Return the tensor; its gradient is the target of `prediction`."""
    apply: Any = _Boundary.apply
    following: Tensor = apply(activation, prediction, accumulated, segment, layout)
    return following


def check_not_recomputed() -> None:
    """A checkpoint around the net would run the net again in the backward pass, with all local backward passes."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    if hooks is not None and getattr(hooks[0], "__module__", "") == "torch.utils.checkpoint":
        raise DniFxError(
            'unlock="backward" runs backward passes while the net runs forward; inside of torch.utils.checkpoint, '
            "they would run twice: checkpoint modules inside of the net, or rely on the cuts to save memory"
        )


def writable(h: Tensor, prediction: Tensor | None) -> Tensor:
    """A copy of an output of `decouple`, for a segment that writes to it; `h` itself where nothing was cut.

    Autograd forbids writes to the view that `decouple` returns, and the synthesizer's saved input must not change.
    """
    if has_torch_function((h, prediction)):
        traced: Tensor = handle_torch_function(writable, (h, prediction), h, prediction)
        return traced
    return h if prediction is None else h.clone()


torch.fx.node.has_side_effect(decouple)
