"""The whole runtime: the few functions that a rewritten graph calls by name.

A *prediction* here is what a synthesizer returns: the gradient of one sample's own loss, that is dL/dh times
the batch size for a loss averaged over the batch. Gradients of a mean shrink as the batch grows; this does
not, so one learning rate suits every batch size. It is divided by the batch size when it is handed upstream.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import handle_torch_function, has_torch_function

from dni_fx.errors import BackwardOrderError

__all__ = ["Segment", "batch_size", "decouple", "inject", "specialised", "writable"]


def batch_size(activation: Tensor) -> int:
    """Rows of a batch-first activation; an activation of one axis or none counts as one sample."""
    return activation.shape[0] if activation.dim() > 1 else 1


_WITNESSES = 4  # gradients of a segment that are looked at, to see later whether they were erased


@dataclass
class Accumulated:
    """A gradient at the end of a local backward pass."""

    parameter: nn.Parameter
    version: int
    nonzero: Tensor | None = None


class Segment(nn.Module):
    """The parameters of one segment. Holds them without owning them: state_dict does not list them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.hold(())

    def hold(self, parameters: Iterable[nn.Parameter]) -> None:
        # The smallest first: they are the witnesses.
        self.__dict__["held"] = tuple(sorted(parameters, key=lambda p: p.numel()))

    def accumulated(self) -> list[Accumulated]:
        """What the parameters have for a gradient now; of the smallest ones, also whether it is zero."""
        found = [Accumulated(p, p.grad._version) for p in self.__dict__["held"] if p.grad is not None]
        for one in found[:_WITNESSES]:
            one.nonzero = one.parameter.grad.any()  # type: ignore[union-attr]  # stays on the device: nobody waits
        return found


# ------------------------------------------------------------------------------------- unlock="none"
_library = torch.library.Library("dni_fx", "FRAGMENT")
_library.define("inject(Tensor h, Tensor prediction, float mix) -> Tensor")
# An op registered with torch.library may not return its input, hence the clone.
_library.impl("inject", lambda h, prediction, mix: h.clone(), "CompositeExplicitAutograd")
torch.library.register_fake("dni_fx::inject", lambda h, prediction, mix: torch.empty_like(h), lib=_library)


def _inject_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    h, prediction, ctx.mix = inputs
    ctx.batch = batch_size(h)
    ctx.save_for_backward(prediction)


def _inject_backward(ctx: Any, target: Tensor) -> tuple[Tensor, Tensor, None]:
    (prediction,) = ctx.saved_tensors
    synthetic = prediction / ctx.batch
    if ctx.mix == 0.0:
        upstream = synthetic.to(target.dtype, copy=True)
    elif ctx.mix == 1.0:
        upstream = target.clone()
    else:
        upstream = ctx.mix * target + (1 - ctx.mix) * synthetic.to(target.dtype)
    return upstream, synthetic - target.to(synthetic.dtype), None


torch.library.register_autograd("dni_fx::inject", _inject_backward, setup_context=_inject_setup, lib=_library)


def inject(h: Tensor, prediction: Tensor | None, mix: float = 0.0) -> Tensor:
    """Identity whose backward pass hands the synthetic gradient upstream.

    One differentiable op: upstream goes `mix * target + (1 - mix) * prediction / batch` (BP(lambda),
    Jaderberg et al. 2017, supplement), and the synthesizer receives `prediction / batch - target`, the
    gradient of the batch mean of half the squared per-sample error.

    Args:
        h: The crossing activation, any floating dtype, batch first.
        prediction: The synthesizer's output, shaped like `h`; None (eval, no grad) makes this the identity.
        mix: Share of the true gradient, 0 to 1.
    """
    if has_torch_function((h, prediction)):
        result: Tensor = handle_torch_function(inject, (h, prediction), h, prediction, mix)
        return result
    if prediction is None:
        return h
    injected: Tensor = torch.ops.dni_fx.inject(h, prediction, mix)
    return injected


# --------------------------------------------------------------------------------- unlock="backward"
class _Boundary(torch.autograd.Function):
    """Hands a detached activation on; what comes back is the synthesizer's target."""

    @staticmethod
    def forward(ctx: Any, detached: Tensor, prediction: Tensor, accumulated: list[Accumulated]) -> Tensor:
        ctx.batch = batch_size(detached)
        ctx.accumulated = accumulated
        ctx.save_for_backward(prediction)
        return detached

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, target: Tensor) -> tuple[None, Tensor, None]:
        (prediction,) = ctx.saved_tensors
        _check_not_erased(ctx.accumulated)
        synthetic = prediction / ctx.batch
        return None, synthetic - target.to(synthetic.dtype), None


def _check_not_erased(accumulated: list[Accumulated]) -> None:
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
    roots, gradients = [], []
    for h, prediction in zip(outputs, predictions, strict=True):
        if h.requires_grad and prediction is not None:
            roots.append(h)
            gradients.append((prediction.detach() / batch_size(h)).to(h.dtype))
    if roots:
        torch.autograd.backward(roots, gradients)
    accumulated = segment.accumulated()
    boundary: Any = _Boundary.apply
    return tuple(boundary(h_in, p, accumulated) for h_in, p in zip(detached, predictions, strict=True))


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
