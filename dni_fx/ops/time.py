"""Both ends of a cut in time: at the beginning of a window, and at its end."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import handle_torch_function, has_torch_function

from dni_fx.errors import BackwardOrderError, DniFxError
from dni_fx.model import by_path
from dni_fx.ops.gradients import batch_size, cast, without_nonfinite
from dni_fx.ops.library import LIBRARY
from dni_fx.ops.segment import TWICE, Segment

__all__ = ["carry", "enter", "learn", "leave", "leaves"]

FROM_WINDOW_TO_WINDOW = "a cut in time remembers the window before: only the code between its ends is compiled"

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


def _carry_backward(ctx: Any, gradients: list[Tensor]) -> tuple[list[Tensor], list[Tensor | None], list[None]]:
    # torch.autograd.grad of tensors above these does not reach their nodes: carry nothing.
    if not any(node is None or torch._C._will_engine_execute_node(node) for node in ctx.origins):
        return list(gradients), [None] * len(ctx.dtypes), [None] * len(ctx.dtypes)
    once, ctx.done = not ctx.done, True  # with two losses, backward passes run twice: carry once
    carried: list[Tensor | None] = [
        cast(without_nonfinite(gradient)[0], dtype) if once else None
        for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
    ]
    return list(gradients), carried, [None] * len(carried)


torch.library.register_autograd("dni_fx::carry", _carry_backward, setup_context=_carry_setup, lib=LIBRARY)


def carry(outputs: Sequence[Tensor], others: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
    """Return the outputs unchanged; a backward pass through them also gives other tensors their gradients.

    Args:
        outputs: All tensors that one backward pass will start from, of any shapes.
        others: Pairs of a tensor and its gradient, such as the state at the end of a window, (N, F), and the predicted
            gradient of the mean loss of all later windows.
    """
    attached = [h for h in outputs if h.requires_grad]
    others = [(other, gradient) for other, gradient in others if other.requires_grad]
    if not (attached and others):
        return tuple(outputs)
    carried = iter(torch.ops.dni_fx.carry(attached, *map(list, zip(*others, strict=True))))
    return tuple(next(carried) if h.requires_grad else h for h in outputs)


def leaves(state: Any, paths: Sequence[Sequence[int | str]]) -> tuple[Tensor, ...]:
    """The tensors of a nested tuple or dict, in the order of `paths`.

    Raises:
        DniFxError: If the state holds other tensors than those at `paths`.
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
    raise DniFxError(f"the state has {len(paths)} tensors, which were not all given: begin a sequence with zeros")


def enter(states: Sequence[Any], cut: nn.Module) -> tuple[Any, ...]:
    """The states at the beginning of a window: see `dni_fx.runtime.time_cut.TimeCut.enter`."""
    if has_torch_function(tuple(states)):
        traced: tuple[Any, ...] = handle_torch_function(enter, tuple(states), states, cut)
        return traced
    found: tuple[Any, ...] = _not_compiled(cut.enter, tuple(states))
    return found


def leave(outputs: Sequence[Tensor], states: Sequence[Tensor], cut: nn.Module) -> tuple[Tensor, ...]:
    """The outputs and states at the end of a window: see `dni_fx.runtime.time_cut.TimeCut.leave`."""
    if has_torch_function((*outputs, *states)):
        traced: tuple[Tensor, ...] = handle_torch_function(leave, (*outputs, *states), outputs, states, cut)
        return traced
    found: tuple[Tensor, ...] = _not_compiled(cut.leave, tuple(outputs), tuple(states))
    return found


@torch.compiler.disable(reason=FROM_WINDOW_TO_WINDOW)  # type: ignore[untyped-decorator]
def _not_compiled(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


class _Learn(torch.autograd.Function):
    """The identity on a tensor; its backward also gives `prediction` the gradient of half the squared error."""

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
    """Return the tensor; its backward pass also trains `prediction` on `target`, both of one shape."""
    apply: Any = _Learn.apply
    following: Tensor = apply(h, prediction, target, segment)
    return following


torch.fx.node.has_side_effect(leaves)

torch.fx.node.has_side_effect(enter)

torch.fx.node.has_side_effect(leave)
