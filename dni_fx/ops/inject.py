"""The boundary of unlock="none": one differentiable operator at each crossing."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from dni_fx.ops.gradients import batch_size, cast, clipped, finite, is_finite
from dni_fx.ops.library import LIBRARY
from dni_fx.ops.segment import Segment

__all__ = ["inject", "injected"]

LIBRARY.define("inject(Tensor h, Tensor prediction, float mix, float clip) -> Tensor")

# An op registered with torch.library may not return its input, hence the clone.
LIBRARY.impl("inject", lambda h, prediction, mix, clip: h.clone(), "CompositeExplicitAutograd")

torch.library.register_fake("dni_fx::inject", lambda h, prediction, mix, clip: torch.empty_like(h), lib=LIBRARY)


def _inject_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    h, prediction, ctx.mix, ctx.clip = inputs
    ctx.batch, ctx.dtype = batch_size(h), h.dtype
    ctx.save_for_backward(prediction)


def _inject_backward(ctx: Any, target: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None]:
    (synthetic,) = ctx.saved_tensors
    if target is None:  # dropped by the cut above
        return None if ctx.mix == 1.0 else cast(finite(synthetic)[0], ctx.dtype), None, None, None
    error = (synthetic - clipped(target, ctx.clip, ctx.batch).to(synthetic.dtype)).mul_(ctx.batch)
    upstream = synthetic
    if ctx.mix == 1.0:
        upstream = target.clone()
    elif ctx.mix != 0.0:
        upstream = ctx.mix * target + (1 - ctx.mix) * synthetic
    # What overflows when it is cast is handed on: a GradScaler is to see it.
    return cast(finite(upstream)[0], ctx.dtype), finite(error)[0], None, None


torch.library.register_autograd("dni_fx::inject", _inject_backward, setup_context=_inject_setup, lib=LIBRARY)


def inject(
    outputs: Sequence[Tensor],
    detached: Sequence[Tensor],
    predictions: Sequence[Tensor | None],
    segment: Segment,
) -> tuple[Tensor, ...]:
    """Hand the outputs of a segment on, unchanged, so that the backward pass hands synthetic gradients down.

    One differentiable op a tensor: upstream goes `mix * target + (1 - mix) * prediction` (BP(lambda), Jaderberg et
    al. 2017, supplement), and the synthesizer receives `batch * (prediction - target)`, the gradient of the batch
    mean of half the squared per-sample error. What is not finite is dropped.

    Args:
        outputs: All tensors that cross the cut, any floating dtype, batch first.
        detached: The same tensors, detached: what the synthesizers saw.
        predictions: One for each, shaped like it; None (eval, no grad) makes this the identity.
        segment: Says what `mix` is.
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
    injected = []
    for h, prediction in zip(outputs, predictions, strict=True):
        assert prediction is not None
        following = torch.ops.dni_fx.inject(h, prediction, mix, segment.clip)
        if following.requires_grad and not torch.compiler.is_compiling():
            following.register_hook(_counter(prediction.detach(), segment))
        injected.append(following)
    return tuple(injected)


def _counter(prediction: Tensor, segment: Segment) -> Callable[[Tensor], None]:
    """Counts what the op drops."""

    def count(target: Tensor | None) -> None:
        good = is_finite(prediction)
        if target is not None:
            good &= is_finite(target)
        if good is not True:
            segment.skipped += 1 if good is False else ~good

    return count


torch.fx.node.has_side_effect(inject)
