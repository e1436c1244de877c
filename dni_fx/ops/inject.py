"""The boundary of unlock="none": one differentiable operator at each crossing."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from dni_fx.ops.gradients import batch_size, cast, clipped, is_finite, without_nonfinite
from dni_fx.ops.library import LIBRARY
from dni_fx.ops.segment import Segment

__all__ = ["inject", "injected"]

# Exported programs that were saved before the op had the last two arguments get their defaults. batch=-1: one sample.
LIBRARY.define("inject(Tensor h, Tensor prediction, float mix, float clip, int batch=0, int rows=1) -> Tensor")

# An op registered with torch.library may not return its input, hence the clone.
LIBRARY.impl("inject", lambda h, *_: h.clone(), "CompositeExplicitAutograd")

torch.library.register_fake("dni_fx::inject", lambda h, *_: torch.empty_like(h), lib=LIBRARY)


def _inject_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    h, prediction, ctx.mix, ctx.clip, batch, rows = inputs
    ctx.axis, ctx.dtype = None if batch < 0 else batch, h.dtype
    ctx.samples = batch_size(h, ctx.axis, rows)
    ctx.save_for_backward(prediction)


def _inject_backward(ctx: Any, target: Tensor | None) -> tuple[Tensor | None, ...]:
    (synthetic,) = ctx.saved_tensors
    if target is None:  # the cut above dropped a gradient that was not finite
        upstream = None if ctx.mix == 1.0 else cast(without_nonfinite(synthetic)[0], ctx.dtype)
        return upstream, None, None, None, None, None
    target_within = clipped(target, ctx.clip, ctx.samples, ctx.axis)
    error = (synthetic - target_within.to(synthetic.dtype)).mul_(ctx.samples)
    upstream = synthetic
    if ctx.mix == 1.0:
        upstream = target.clone()
    elif ctx.mix != 0.0:
        upstream = ctx.mix * target + (1 - ctx.mix) * synthetic
    # Values that overflow in the cast stay: a GradScaler must see them.
    return cast(without_nonfinite(upstream)[0], ctx.dtype), without_nonfinite(error)[0], None, None, None, None


torch.library.register_autograd("dni_fx::inject", _inject_backward, setup_context=_inject_setup, lib=LIBRARY)


def inject(
    outputs: Sequence[Tensor],
    detached: Sequence[Tensor],
    predictions: Sequence[Tensor | None],
    segment: Segment,
) -> tuple[Tensor, ...]:
    """Return the outputs of a segment unchanged; in the backward pass the segment gets synthetic gradients.

    One differentiable op a tensor: it sends `mix * target + (1 - mix) * prediction` upstream (BP(lambda), Jaderberg et
    al. 2017, supplement), and `batch * (prediction - target)` to the synthesizer, the gradient of the batch mean of
    half the squared per-sample error. Gradients that are not finite are dropped.

    Args:
        outputs: All tensors that cross the cut, any floating dtype.
        detached: The same tensors, detached: the inputs of the synthesizers.
        predictions: One for each tensor, of its shape; None (eval, no grad): return `outputs` unchanged.
        segment: Gives `mix`, and the batch axis of each tensor.
    """
    tensors = (*outputs, *detached, *predictions)
    if has_torch_function(tensors):
        traced: tuple[Tensor, ...] = handle_torch_function(inject, tensors, outputs, detached, predictions, segment)
        return traced
    if any(prediction is None for prediction in predictions):
        return tuple(outputs)
    return injected(outputs, predictions, segment, segment.next_mix())


def injected(
    outputs: Sequence[Tensor], predictions: Sequence[Tensor | None], segment: Segment, mix: float
) -> tuple[Tensor, ...]:
    """`outputs` through the op, with this `mix`."""
    following = []
    for index, (h, prediction) in enumerate(zip(outputs, predictions, strict=True)):
        assert prediction is not None
        finite = torch.compiler.is_compiling() or is_finite(prediction)  # a compiler has no values
        if finite is False:
            segment.post_drop(index, h)
        layout = segment.layout(index)
        axis = layout.axis(h)
        h = torch.ops.dni_fx.inject(h, prediction, mix, segment.clip, -1 if axis is None else axis, layout.rows)
        if h.requires_grad and not torch.compiler.is_compiling():
            h.register_hook(_counter(finite, segment, mix))
        following.append(h)
    return tuple(following)


def _counter(finite: bool | Tensor, segment: Segment, mix: float) -> Callable[[Tensor], None]:
    """A hook that counts the gradients that the op drops, and looks whether older gradients are kept.

    Args:
        finite: Whether the prediction is finite.
    """

    def count(target: Tensor | None) -> None:
        if mix != 1.0:
            segment.accumulation.pre_target()
        ok = finite if target is None else finite & is_finite(target)
        if ok is not True:
            segment.skipped += 1 if ok is False else ~ok

    return count


torch.fx.node.has_side_effect(inject)
