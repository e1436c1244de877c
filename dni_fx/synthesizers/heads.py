"""Synthesizers that know the loss: a small head on the activation, whose loss is differentiated.

Predicting a loss and differentiating it (a critic: Czarnecki et al. 2017, Sobolev Training, Sect. 4.3) and a local loss
(decoupled greedy learning: Belilovsky et al. 2020) differ only in the losses that the head is fitted by.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dni_fx.errors import ContextError, DniFxError, described, first_line
from dni_fx.settings import Loss
from dni_fx.synthesizers.base import Activation, Synthesizer, adaptive_average, check_size
from dni_fx.synthesizers.context import IGNORED, as_rows
from dni_fx.synthesizers.loss_scale import LossScale
from dni_fx.synthesizers.registry import register

__all__ = ["Critic", "GuidedHead", "Link", "LocalHead", "LossHead", "Outcome", "sample_losses"]

GRID = 4  # positions along each axis to which a head averages a map


@dataclass
class Pass:
    """One forward pass of a head, and the pass of the head above."""

    values: Tensor | None  # the samples' losses (N,); None: no head is fitted to them
    above: "Pass | None" = None


class Link:
    """The connection from a head to the heads below, which are fitted to the values of this head.

    Values belong to one forward pass: several passes, of different batches, may come before the backward pass.
    """

    def __init__(self) -> None:
        self.below: Sequence[Link] = ()
        self.latest: Pass | None = None

    def begin(self, values: Tensor | None) -> Pass:
        self.latest = Pass(values)
        for link in self.below:
            if link.latest is not None:
                link.latest.above = self.latest
        return self.latest


class LossHead(Synthesizer):
    """Base of the synthesizers that differentiate `loss(head(activation), labels)`.

    The prediction is the gradient of each sample's own loss, as for every synthesizer. In the backward pass the head is
    trained by the weighted sum of three losses: its own, half the squared error of its gradient, and half the squared
    difference of its loss, sample by sample, from the loss of the head above.

    Args:
        loss: A function of (outputs, labels) that returns a mean.
        hidden_layers: Number of hidden layers of the head, each with a ReLU.
        hidden_size: The width of hidden layers.
        dense: Apply the head at every position by itself, in place of pooling a map.
    """

    own_unit = True
    weights: tuple[float, float, float]  # own, gradient, value

    def __init__(
        self,
        activation: Activation,
        context_size: int = 0,
        *,
        loss: Loss,
        hidden_layers: int = 1,
        hidden_size: int = 256,
        dense: bool = False,
    ) -> None:
        super().__init__(activation, context_size)
        name = type(self).__name__
        if not context_size:
            raise DniFxError(f"a {name} needs labels, a row a sample: give classes= (or context_size=)")
        self.loss = loss
        self.dense = dense
        self.is_map = activation.axis == 1 and len(activation.shape) > 2
        positions = 1
        if self.is_map and not dense:
            positions = GRID ** (len(activation.shape) - 2)
        hidden = check_size(name, "hidden_size", hidden_size)
        sizes = [self.features * positions] + [hidden] * check_size(name, "hidden_layers", hidden_layers, least=0)
        layers: list[nn.Module] = []
        for n_in, n_out in zip(sizes[:-1], sizes[1:], strict=True):
            layers += [nn.Linear(n_in, n_out), nn.ReLU()]
        self.head = nn.Sequential(*layers, nn.Linear(sizes[-1], context_size))
        self.link = Link()
        self.loss_scale: LossScale | None = None  # also the factor of the head's own losses

    def configure(self, *, loss_scale: LossScale | None, centered: bool) -> None:
        self.loss_scale = loss_scale

    @property
    def fits_value(self) -> bool:
        """Whether the head is fitted to the losses of the head above."""
        return self.weights[2] > 0

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, activation: Tensor, labels: Tensor | None = None) -> Tensor:
        """The gradient of each sample's own loss.

        Args:
            activation: Detached.
            labels: Integers (N,), or one for each position; or rows of `context_size` floats.
        """
        assert labels is not None
        own, gradient, value = self.weights
        with torch.enable_grad():
            h = activation.detach().requires_grad_()
            outputs, labels = self._rows(h, labels)
            mean = self._mean_loss(outputs, labels)
            values = sample_losses(self.loss, outputs, labels, len(h)) if value else None
            (predicted,) = torch.autograd.grad(mean, h, create_graph=bool(gradient), retain_graph=True)
        predicted = predicted * self.samples(h)
        here = self.link.begin(None if values is None else values.detach())
        fitted: Any = _Fitted.apply
        factor = 1.0 if self.loss_scale is None else self.loss_scale.factor()
        result: Tensor = fitted(predicted, mean if own else None, values, self.weights, factor, here)
        return result

    def _mean_loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        try:
            return self.loss(outputs, labels)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise ContextError(
                f"loss={described(self.loss)} does not take outputs {list(outputs.shape)} with the dni_context "
                f"{list(labels.shape)} of {labels.dtype} ({first_line(error)}): give labels that fit the loss (one-hot "
                "labels are floats), or another loss"
            ) from None

    def _rows(self, h: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs of the head, and labels: a row for every sample, or for every position that has a label."""
        of_samples = labels.dim() == (2 if labels.is_floating_point() else 1)
        if self.is_map and not self.dense:
            if not of_samples:
                raise ContextError(
                    "dni_context holds a label for every position: give the synthesizer the option dense=True, as in "
                    'synthesizer="guided_head(dense=True)"'
                )
            pooled = _pool(h)
            return self.head(pooled.flatten(1)), labels
        outputs = self.head(h.movedim(self.axis, -1))
        if of_samples:
            outputs = outputs.flatten(1, -2).mean(1) if outputs.dim() > 2 else outputs
        elif outputs.shape[:-1] != labels.shape[: outputs.dim() - 1]:
            outputs = _resized(outputs, labels)
        return _paired(outputs, labels)


def _paired(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """A row of outputs for each label, or for each row of labels."""
    width = outputs.shape[-1]
    outputs = outputs.reshape(-1, width)
    labels = labels.reshape(-1, width) if labels.is_floating_point() else labels.reshape(-1)
    if len(outputs) != len(labels):
        raise ContextError(
            f"dni_context holds {len(labels)} labels, but there are {len(outputs)} to predict: give integers, one a "
            "sample or position, or a row of floats (one-hot labels are floats)"
        )
    return outputs, labels


def _pool(h: Tensor) -> Tensor:
    """A map averaged over a grid of fixed size."""
    return adaptive_average(h, [GRID] * (h.dim() - 2))


def _resized(outputs: Tensor, labels: Tensor) -> Tensor:
    """Outputs (N, ..., K) of a map at the resolution of its labels."""
    size = labels.shape[1 : outputs.dim() - 1]
    if outputs.dim() not in (3, 4, 5) or len(size) != outputs.dim() - 2 or len(labels) != len(outputs):
        raise ContextError(
            f"dni_context has shape {list(labels.shape)}, the activation {list(outputs.shape[:-1])} positions"
        )
    return nn.functional.interpolate(outputs.movedim(-1, 1), size).movedim(1, -1)


class _Fitted(torch.autograd.Function):
    """Return the prediction; in backward, pass its error on to the losses that the head is fitted by, with weights."""

    @staticmethod
    def forward(
        ctx: Any,
        predicted: Tensor,
        own: Tensor | None,
        values: Tensor | None,
        weights: tuple[float, ...],
        factor: float | Tensor,
        here: Pass,
    ) -> Tensor:
        ctx.weights, ctx.factor, ctx.here = weights, factor, here
        ctx.set_materialize_grads(False)
        return predicted.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, error: Tensor | None) -> tuple[Any, ...]:
        if error is None:  # the error was not finite, so the head's own loss may be wrong, too
            return (None,) * 6
        own, gradient, value = ctx.weights
        off, values = None, ctx.here.values
        above = None if ctx.here.above is None else ctx.here.above.values
        if values is not None and above is not None:
            off = value * ctx.factor * (values - above.to(values)) / len(values)
            off = torch.where(off.isfinite(), off, 0.0)
        first = torch.full((), own, device=error.device) * ctx.factor if own else None  # float16 cannot hold the factor
        return gradient * error if gradient else None, first, off, None, None, None


def sample_losses(loss: Loss, outputs: Tensor, labels: Tensor, samples: int) -> Tensor:
    """Each sample's own loss (N,); the mean of these is the batch's loss.

    Args:
        outputs: Rows of outputs, the same number for every sample.
        labels: A row of floats, or an integer, for each row of outputs; -100 for no label.
    """
    rows = torch.func.vmap(lambda o, y: loss(o[None], y[None]), randomness="different")(outputs, labels)
    rows = rows.reshape(samples, len(rows) // max(1, samples))
    if labels.is_floating_point():
        return rows.mean(1)
    ignored = (labels == IGNORED).reshape(rows.shape)
    known = (~ignored).sum().clamp(min=1)
    return rows.masked_fill(ignored, 0.0).sum(1) * (samples / known)


@register("local_head")
class LocalHead(LossHead):
    """A small head trained on the loss alone, without a target (decoupled greedy learning)."""

    weights = (1.0, 0.0, 0.0)


@register("guided_head")
class GuidedHead(LossHead):
    """A local head that is also fitted to the gradient from above."""

    def __init__(self, activation: Activation, context_size: int = 0, *, pull: float = 1.0, **options: Any) -> None:
        super().__init__(activation, context_size, **options)
        if not isinstance(pull, int | float) or not 0 < pull < math.inf:
            raise DniFxError(f"guided_head: pull={pull!r}; the weight of the gradient from above is positive")
        self.weights = (1.0, float(pull), 0.0)


@register("critic")
class Critic(LossHead):
    """A small head whose loss is fitted to the loss above, in value and gradient (Sobolev training)."""

    def __init__(self, activation: Activation, context_size: int = 0, *, fit: str = "both", **options: Any) -> None:
        super().__init__(activation, context_size, **options)
        fits = {"value": (0.0, 0.0, 1.0), "gradient": (0.0, 1.0, 0.0), "both": (0.0, 1.0, 1.0)}
        if fit not in fits:
            raise DniFxError(f"critic: fit={fit!r}; there are value, gradient and both")
        self.weights = fits[fit]
        if self.fits_value and activation.rows != 1:
            raise DniFxError(
                f"critic: compares the losses of samples, but a tensor of shape {list(activation.shape)} has several "
                "rows a sample: cut elsewhere, or use guided_head"
            )


class Outcome(nn.Module):
    """Computes the samples' losses from the model's output, which the uppermost critic is fitted to."""

    _is_impure = True

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.loss = loss
        self.link = Link()

    def forward(self, output: Tensor, labels: Tensor | None = None) -> None:
        if not (self.training and torch.is_grad_enabled()) or labels is None:
            return
        if labels.is_floating_point():
            output = output.unsqueeze(-1) if output.dim() == 1 else output
            labels = as_rows(labels, output.shape[-1])
        if not labels.is_floating_point() and output.shape[:1] + output.shape[2:] == labels.shape and labels.dim() > 1:
            output = output.movedim(1, -1)  # (N, K, positions...)
        with torch.no_grad():
            rows = output.detach().reshape(-1, output.shape[-1])
            flat = labels.reshape(-1, labels.shape[-1]) if labels.is_floating_point() else labels.reshape(-1).long()
            if len(rows) == len(flat):
                self.link.begin(sample_losses(self.loss, rows, flat, len(output)))
