"""The whole runtime: the few functions that a rewritten graph calls by name.

A *prediction* here is the synthetic gradient that goes upstream: that of a loss averaged over the batch. What comes
back for it is the gradient of half the squared per-sample error, averaged over the batch: the batch size times
`prediction - target`. Gradients of a mean shrink as the batch grows; the error of each sample's own does not, so one
learning rate suits every batch size.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import handle_torch_function, has_torch_function

from dni_fx.calling import by_path
from dni_fx.errors import BackwardOrderError, DniFxError
from dni_fx.settings import Mix, Training

__all__ = [
    "Segment",
    "batch_size",
    "boundary",
    "carry",
    "decouple",
    "enter",
    "inject",
    "learn",
    "leave",
    "leaves",
    "specialised",
    "writable",
]


def batch_size(activation: Tensor) -> int:
    """Rows of a batch-first activation; an activation of one axis or none counts as one sample."""
    return activation.shape[0] if activation.dim() > 1 else 1


ONE_BY_ONE = 'unlock="backward" goes backward at every cut: its segments are compiled one by one'
FROM_WINDOW_TO_WINDOW = "a cut in time remembers the window before: what is between its ends is compiled"
_WITNESSES = 4  # gradients of a segment that are looked at, to see later whether they were erased


@dataclass
class Accumulated:
    """A gradient at the end of a local backward pass."""

    parameter: nn.Parameter
    version: int
    nonzero: Tensor | None = None


class Segment(nn.Module):
    """What is to be known, while the net runs, of one segment and of the cut above it.

    Holds the segment's parameters without owning them: state_dict does not list them twice.

    Attributes:
        mix: Share of the true gradient that is handed upstream; or from where to where it goes, in how many steps.
        warmup: Steps at the beginning in which that share is 1.
        clip: Largest norm of one sample's target; 0: no limit.
        steps: Training steps so far, always on the CPU, where the share varies.
        skipped: How often a prediction or a target was dropped, for it was not finite.
    """

    skipped: Tensor

    def __init__(self, mix: Mix = 0.0, training: Training = Training()) -> None:  # noqa: B008  # frozen
        super().__init__()
        self.mix = mix
        self.warmup = training.warmup
        self.clip = training.clip or 0.0
        self.steps = torch.zeros((), dtype=torch.int64)
        self.register_buffer("skipped", torch.zeros((), dtype=torch.int64), persistent=False)
        self.hold(())
        self.index = self.generation = 0
        self.__dict__.update(optimizer=None, averaging=None)

    def hold(self, parameters: Iterable[nn.Parameter]) -> None:
        # The smallest first: they are the witnesses.
        self.__dict__["held"] = tuple(sorted(parameters, key=lambda p: p.numel()))

    def tell(self, index: int, **who: Any) -> None:
        """Who is told when this segment, by its number, has gone backward: an `optimizer`, or an `averaging`."""
        self.index = index
        self.__dict__.update(who)

    def freed(self) -> None:
        """The gradients have been used: from now on nobody misses them."""
        self.generation += 1

    def run_backward(self, roots: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """The local backward pass."""
        optimizer, averaging = self.__dict__["optimizer"], self.__dict__["averaging"]
        device = self.skipped.device.type
        cast = torch.is_autocast_enabled(device)  # a backward pass takes the dtypes that forward took
        with (
            torch.autocast(device, enabled=False) if cast else contextlib.nullcontext(),
            contextlib.nullcontext() if optimizer is None else optimizer.local(self.index),
        ):
            if roots:
                _go_backward(roots, gradients)
            if averaging is not None:
                averaging.start(self.index)
                if optimizer is not None:
                    averaging.finish()

    def accumulated(self) -> list[Accumulated]:
        """What the parameters have for a gradient now; of the smallest ones, also whether it is zero."""
        found = [Accumulated(p, p.grad._version) for p in self.__dict__["held"] if p.grad is not None]
        for one in found[:_WITNESSES]:
            one.nonzero = one.parameter.grad.any()  # type: ignore[union-attr]  # stays on the device: nobody waits
        return found

    @property
    def varies(self) -> bool:
        """Whether the share of the true gradient changes from step to step."""
        return isinstance(self.mix, tuple) or self.warmup > 0

    def next_mix(self) -> float:
        """The share of the true gradient in the step that begins."""
        if not self.varies:
            return float(self.mix)  # type: ignore[arg-type]
        if torch.compiler.is_compiling():
            raise DniFxError("a warm-up or a mix that changes cannot be compiled: compile when they are over")
        self.steps += 1
        done = int(self.steps) - 1 - self.warmup
        if done < 0:
            return 1.0
        if not isinstance(self.mix, tuple):
            return float(self.mix)
        start, end, steps = self.mix
        return start + (end - start) * min(done / steps, 1.0)

    def keep_finite(self, gradient: Tensor) -> Tensor | None:
        """The gradient; if anything in it is not finite, it is counted, and None, or zeros where a look would wait."""
        kept, ok = finite(gradient)
        if ok is not True:
            self.skipped += 1 if ok is False else ~ok
        return kept

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.varies:
            destination[f"{prefix}steps"] = self.steps.clone()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        steps = state_dict.pop(f"{prefix}steps", None)
        if steps is not None:
            self.steps = steps.detach().cpu().clone()
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _go_backward(roots: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    try:
        torch.autograd.backward(roots, gradients)
    except RuntimeError as error:
        if "second time" not in str(error):
            raise
        raise BackwardOrderError(
            "a segment's backward pass ran into a graph that another one has freed: with unlock='backward' an input "
            "must not carry gradient from an earlier call of the net, or of layers that others use, too: detach it, or "
            "use unlock='none'"
        ) from error


def can_look(tensor: Tensor) -> bool:
    """Whether its values are there to be looked at, and nobody has to wait for them."""
    traced = torch.compiler.is_compiling() or type(tensor) is not Tensor
    return tensor.device.type == "cpu" and not traced


def is_finite(gradient: Tensor) -> Any:
    """Whether all of it is, in one pass: a bool where one can look, else a tensor on its device."""
    wide = torch.float32 if gradient.dtype.itemsize < 4 else None
    total = gradient.sum(dtype=wide)
    return math.isfinite(total.item()) if can_look(gradient) else total.isfinite()


def finite(gradient: Tensor) -> tuple[Tensor | None, Any]:
    """The gradient, and whether all of it is finite; if not, None in its place, or zeros where a look would wait.

    None is the better one: zeros times an activation that is not finite are not finite again.
    """
    ok = is_finite(gradient)
    if isinstance(ok, bool):
        return (gradient if ok else None), ok
    return torch.where(ok, gradient, 0.0), ok


def clipped(target: Tensor, clip: float, batch: int) -> Tensor:
    """The target with the norm of each sample's own gradient (target times batch) held down to `clip`; 0: no limit."""
    if not clip:
        return target
    norms = torch.linalg.vector_norm(target.reshape(batch, -1), dim=1, keepdim=True) * batch
    held: Tensor = target.reshape(batch, -1) * (clip / norms.clamp(min=clip))
    return held.reshape(target.shape)


# ------------------------------------------------------------------------------------- unlock="none"
_library = torch.library.Library("dni_fx", "FRAGMENT")
_library.define("inject(Tensor h, Tensor prediction, float mix, float clip) -> Tensor")
# An op registered with torch.library may not return its input, hence the clone.
_library.impl("inject", lambda h, prediction, mix, clip: h.clone(), "CompositeExplicitAutograd")
torch.library.register_fake("dni_fx::inject", lambda h, prediction, mix, clip: torch.empty_like(h), lib=_library)


def _inject_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    h, prediction, ctx.mix, ctx.clip = inputs
    ctx.batch, ctx.dtype = batch_size(h), h.dtype
    ctx.save_for_backward(prediction)


def _inject_backward(ctx: Any, target: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None]:
    (synthetic,) = ctx.saved_tensors
    if target is None:  # dropped by the cut above
        return None if ctx.mix == 1.0 else _cast(finite(synthetic)[0], ctx.dtype), None, None, None
    error = (synthetic - clipped(target, ctx.clip, ctx.batch).to(synthetic.dtype)).mul_(ctx.batch)
    upstream = synthetic
    if ctx.mix == 1.0:
        upstream = target.clone()
    elif ctx.mix != 0.0:
        upstream = ctx.mix * target + (1 - ctx.mix) * synthetic
    # What overflows when it is cast is handed on: a GradScaler is to see it.
    return _cast(finite(upstream)[0], ctx.dtype), finite(error)[0], None, None


def _cast(gradient: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if gradient is None else gradient.to(dtype)


torch.library.register_autograd("dni_fx::inject", _inject_backward, setup_context=_inject_setup, lib=_library)


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
    return _injected(outputs, predictions, segment, segment.next_mix())


def _injected(
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


# ---------------------------------------------------------------------------------- the cut in time
_library.define("carry(Tensor[] outputs, Tensor[] others, Tensor[] gradients) -> Tensor[]")
_library.impl("carry", lambda outputs, others, gradients: [h.clone() for h in outputs], "CompositeExplicitAutograd")
torch.library.register_fake(
    "dni_fx::carry", lambda outputs, others, gradients: [torch.empty_like(h) for h in outputs], lib=_library
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
        _cast(finite(gradient)[0], dtype) if once else None
        for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
    ]
    return list(came), carried, [None] * len(carried)


torch.library.register_autograd("dni_fx::carry", _carry_backward, setup_context=_carry_setup, lib=_library)


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
    """What a window begins with: see `dni_fx.recurrent.TimeCut.enter`."""
    if has_torch_function(tuple(states)):
        traced: tuple[Any, ...] = handle_torch_function(enter, tuple(states), states, cut)
        return traced
    found: tuple[Any, ...] = _apart(cut.enter, tuple(states))
    return found


def leave(outputs: Sequence[Tensor], states: Sequence[Tensor], cut: nn.Module) -> tuple[Tensor, ...]:
    """What a window ends with: see `dni_fx.recurrent.TimeCut.leave`."""
    if has_torch_function((*outputs, *states)):
        traced: tuple[Tensor, ...] = handle_torch_function(leave, (*outputs, *states), outputs, states, cut)
        return traced
    found: tuple[Tensor, ...] = _apart(cut.leave, tuple(outputs), tuple(states))
    return found


@torch.compiler.disable(reason=FROM_WINDOW_TO_WINDOW)  # type: ignore[untyped-decorator]
def _apart(end: Any, *arguments: Any) -> Any:
    return end(*arguments)


# --------------------------------------------------------------------------------- unlock="backward"
_TWICE = (
    "two backward passes through one forward pass: the target of a synthesizer comes once, and with "
    "unlock='backward' what is below the cuts has gone backward in forward. Add the losses up, and go backward from "
    "the sum"
)


class _Boundary(torch.autograd.Function):
    """Hands a detached activation on; what comes back is the synthesizer's target."""

    @staticmethod
    def forward(
        ctx: Any, detached: Tensor, prediction: Tensor, accumulated: Sequence[Accumulated], segment: Segment
    ) -> Tensor:
        ctx.batch = batch_size(detached)
        ctx.done = False
        ctx.accumulated, ctx.segment, ctx.generation = accumulated, segment, segment.generation
        ctx.save_for_backward(prediction)
        return detached

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, target: Tensor) -> tuple[None, Tensor | None, None, None]:
        (prediction,) = ctx.saved_tensors
        if ctx.done:
            raise BackwardOrderError(_TWICE)
        ctx.done = True
        if ctx.generation == ctx.segment.generation:
            _check_not_erased(ctx.accumulated)
        target = clipped(target, ctx.segment.clip, ctx.batch)
        error = (prediction - target.to(prediction.dtype)).mul_(ctx.batch)
        return None, ctx.segment.keep_finite(error), None, None


def _check_not_erased(accumulated: Sequence[Accumulated]) -> None:
    erased = any(one.parameter.grad is None for one in accumulated)
    if not erased:
        # zero_grad(set_to_none=False) leaves zeros. Look at values only where something wrote to them: on a
        # GPU a look waits for the device. A gradient that was zero before tells nothing.
        witnesses = [(one.nonzero, one.parameter.grad, one.version) for one in accumulated]
        now = [
            g for was, g, version in witnesses if was is not None and g is not None and g._version != version and was
        ]
        erased = bool(now) and not any(bool(g.any()) for g in now)
    if erased:
        raise BackwardOrderError(
            "zero_grad() was called between the forward and the backward pass, and erased gradients that "
            'unlock="backward" had already accumulated during forward. Move zero_grad() before the forward '
            "pass: opt.zero_grad(); loss = criterion(net(x), y); loss.backward(); opt.step()"
        )


def decouple(
    outputs: Sequence[Tensor],
    detached: Sequence[Tensor],
    predictions: Sequence[Tensor | None],
    segment: Segment,
) -> tuple[Tensor, ...]:
    """Run a segment's backward pass now, from predicted gradients, and hand its outputs on, cut off.

    The local backward starts from all crossing tensors at once, and frees the segment's graph. The target of
    each prediction arrives when the part above runs its own backward pass.

    Args:
        outputs: All tensors that cross the cut, attached to the segment's graph.
        detached: The same tensors, detached: what the synthesizers saw.
        predictions: One for each, shaped like it; None (eval, no grad) hands `outputs` on unchanged.
        segment: Holds the parameters whose gradients the local backward accumulates.

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
    _check_not_recomputed()
    if segment.next_mix() == 1.0:  # the warm-up
        following = _injected(outputs, predictions, segment, 1.0)
        if segment.__dict__["averaging"] is not None:
            segment.__dict__["averaging"].at_the_end(segment.index, following)
        return following
    roots, gradients = [], []
    for h, prediction in zip(outputs, predictions, strict=True):
        if h.requires_grad and prediction is not None:
            synthetic = segment.keep_finite(prediction.detach())
            if synthetic is not None:
                roots.append(h)
                gradients.append(synthetic.to(h.dtype))
    segment.run_backward(roots, gradients)
    accumulated = segment.accumulated()
    return tuple(boundary(h_in, p, segment, accumulated) for h_in, p in zip(detached, predictions, strict=True))


def boundary(
    detached: Tensor, prediction: Tensor | None, segment: Segment, accumulated: Sequence[Accumulated] = ()
) -> Tensor:
    """The tensor, handed on; the gradient that comes back to it is the target of `prediction`."""
    apply: Any = _Boundary.apply
    following: Tensor = apply(detached, prediction, accumulated, segment)
    return following


class _Lesson(torch.autograd.Function):
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
            raise BackwardOrderError(_TWICE)
        ctx.done = True
        prediction, target = ctx.saved_tensors
        error = (prediction - target.to(prediction.dtype)).mul_(batch_size(prediction))
        return gradient, ctx.segment.keep_finite(error), None, None


def learn(h: Tensor, prediction: Tensor, target: Tensor, segment: Segment) -> Tensor:
    """The tensor, handed on; when a gradient comes to it, `prediction` learns its `target`, both of one shape."""
    apply: Any = _Lesson.apply
    following: Tensor = apply(h, prediction, target, segment)
    return following


def _check_not_recomputed() -> None:
    """A checkpoint around the net would run it again in the backward pass, local backward passes and all."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    if hooks is not None and getattr(hooks[0], "__module__", "") == "torch.utils.checkpoint":
        raise DniFxError(
            'unlock="backward" goes backward while the net runs; inside of torch.utils.checkpoint, it '
            "would do so twice: checkpoint modules inside of the net, or rely on the cuts to save memory"
        )


def writable(h: Tensor, prediction: Tensor | None) -> Tensor:
    """A copy of what `decouple` handed on, for a segment that writes to it; `h` itself where nothing was cut.

    Autograd lets nobody write to the view that `decouple` gives, and the synthesizer's saved input must not change.
    """
    if has_torch_function((h, prediction)):
        traced: Tensor = handle_torch_function(writable, (h, prediction), h, prediction)
        return traced
    return h if prediction is None else h.clone()


# ---------------------------------------------------------------------------------- any rewritten graph
def specialised(name: str, value: object, traced: object) -> None:
    """Refuse an argument value other than the one that the model was traced with."""
    if has_torch_function((value,)):
        handle_torch_function(specialised, (value,), name, value, traced)
    elif isinstance(value, Tensor) or value != traced:
        raise TypeError(
            f"argument {name!r} was {traced!r} when the model was traced, and the graph holds for that value only; "
            f"rewrite the model with example inputs that give {name!r}"
        )


torch.fx.node.has_side_effect(specialised)
torch.fx.node.has_side_effect(decouple)
torch.fx.node.has_side_effect(inject)
torch.fx.node.has_side_effect(leaves)
torch.fx.node.has_side_effect(enter)
torch.fx.node.has_side_effect(leave)
