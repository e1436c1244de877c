"""Both ends of a cut in time: what a window begins with, and what it ends with."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import handle_torch_function, has_torch_function

from dni_fx.errors import BackwardOrderError, DniFxError
from dni_fx.model import by_path
from dni_fx.ops.gradients import batch_size, cast, finite
from dni_fx.ops.library import LIBRARY
from dni_fx.ops.segment import TWICE, Segment

__all__ = ["carry", "enter", "learn", "leave", "leaves"]

FROM_WINDOW_TO_WINDOW = "a cut in time remembers the window before: what is between its ends is compiled"

LIBRARY.define("carry(Tensor[] outputs, Tensor[] others, Tensor[] gradients) -> Tensor[]")

LIBRARY.impl("carry", lambda outputs, others, gradients: [h.clone() for h in outputs], "CompositeExplicitAutograd")

torch.library.register_fake(
    "dni_fx::carry", lambda outputs, others, gradients: [torch.empty_like(h) for h in outputs], lib=LIBRARY
)


def _carry_setup(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    _, others, gradients = inputs
    ctx.dtypes, ctx.done = [other.dtype for other in others], False
    ctx.origins = [other.grad_fn for other in others]
    ctx.save_for_backward(*gradients)


def _carry_backward(ctx: Any, came: list[Tensor]) -> tuple[list[Tensor], list[Tensor | None], list[None]]:
    # Whoever asks for gradients of what lies above only, as torch.autograd.grad may, does not get there.
    if not any(node is None or torch._C._will_engine_execute_node(node) for node in ctx.origins):
        return list(came), [None] * len(ctx.dtypes), [None] * len(ctx.dtypes)
    once, ctx.done = not ctx.done, True  # whoever goes backward twice, from two losses, gets it once
    carried: list[Tensor | None] = [
        cast(finite(gradient)[0], dtype) if once else None
        for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
    ]
    return list(came), carried, [None] * len(carried)


torch.library.register_autograd("dni_fx::carry", _carry_backward, setup_context=_carry_setup, lib=LIBRARY)


def carry(outputs: Sequence[Tensor], others: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
    """The outputs, unchanged; when their gradients come, others get the ones that are given for them.

    Args:
        outputs: All tensors of one backward pass that follows, any shapes.
        others: Tensors with their gradients, as what a window hands on, (N, F), with the predicted gradient of the mean
            loss of all later windows.
    """
    attached = [h for h in outputs if h.requires_grad]
    others = [(other, gradient) for other, gradient in others if other.requires_grad]
    if not (attached and others):
        return tuple(outputs)
    carried = iter(torch.ops.dni_fx.carry(attached, *map(list, zip(*others, strict=True))))
    return tuple(next(carried) if h.requires_grad else h for h in outputs)


def leaves(state: Any, paths: Sequence[Sequence[int | str]]) -> tuple[Tensor, ...]:
    """The tensors at these places of a tuple or dict, however nested, which must hold no others.

    Raises:
        DniFxError: If it does.
    """
    if has_torch_function((state,)):
        traced: tuple[Tensor, ...] = handle_torch_function(leaves, (state,), state, paths)
        return traced
    try:
        given = by_path(state)
        if len(given) == len(paths):
            return tuple(given[tuple(path)] for path in paths)
    except KeyError:
        pass
    raise DniFxError(f"the state has {len(paths)} tensors, but others were given: begin a sequence with zeros")


def enter(states: Sequence[Any], cut: nn.Module) -> tuple[Any, ...]:
    """What a window begins with: see `dni_fx.runtime.time_cut.TimeCut.enter`."""
    if has_torch_function(tuple(states)):
        traced: tuple[Any, ...] = handle_torch_function(enter, tuple(states), states, cut)
        return traced
    found: tuple[Any, ...] = _apart(cut.enter, tuple(states))
    return found


def leave(outputs: Sequence[Tensor], states: Sequence[Tensor], cut: nn.Module) -> tuple[Tensor, ...]:
    """What a window ends with: see `dni_fx.runtime.time_cut.TimeCut.leave`."""
    if has_torch_function((*outputs, *states)):
        traced: tuple[Tensor, ...] = handle_torch_function(leave, (*outputs, *states), outputs, states, cut)
        return traced
    found: tuple[Tensor, ...] = _apart(cut.leave, tuple(outputs), tuple(states))
    return found


@torch.compiler.disable(reason=FROM_WINDOW_TO_WINDOW)  # type: ignore[untyped-decorator]
def _apart(end: Any, *arguments: Any) -> Any:
    return end(*arguments)


class _Learn(torch.autograd.Function):
    """Hands a tensor on; with its gradient, that of half the squared error of a prediction goes to this."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, prediction: Tensor, target: Tensor, segment: Segment) -> Tensor:
        ctx.save_for_backward(prediction, target)
        ctx.segment, ctx.done = segment, False
        return h.view_as(h)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        if ctx.done:
            raise BackwardOrderError(TWICE)
        ctx.done = True
        prediction, target = ctx.saved_tensors
        error = (prediction - target.to(prediction.dtype)).mul_(batch_size(prediction))
        return gradient, ctx.segment.keep_finite(error), None, None


def learn(h: Tensor, prediction: Tensor, target: Tensor, segment: Segment) -> Tensor:
    """The tensor, handed on; when a gradient comes to it, `prediction` learns its `target`, both of one shape."""
    apply: Any = _Learn.apply
    following: Tensor = apply(h, prediction, target, segment)
    return following


torch.fx.node.has_side_effect(leaves)

torch.fx.node.has_side_effect(enter)

torch.fx.node.has_side_effect(leave)
