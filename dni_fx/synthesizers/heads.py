"""The synthesizer `guided_head`: a small head on the activation, whose loss is differentiated.

The head is trained by its own loss (decoupled greedy learning: Belilovsky et al. 2020), and its gradient is pulled
towards the gradient from above.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dni_fx.errors import ContextError, DniFxError, described, first_line
from dni_fx.settings import Loss
from dni_fx.synthesizers.base import Activation, Synthesizer, adaptive_average, check_size
from dni_fx.synthesizers.loss_scale import LossScale
from dni_fx.synthesizers.registry import register

__all__ = ["GuidedHead"]

GRID = 4  # positions along each axis to which a head averages a map


@register("guided_head")
class GuidedHead(Synthesizer):
    """Differentiates the loss of a small head, which is also fitted to the gradient from above.

    The prediction is the gradient of each sample's own loss, as for every synthesizer. In the backward pass the head is
    trained by its own loss and `pull` times half the squared error of its gradient.

    Args:
        loss: A function of (outputs, labels) that returns a mean.
        hidden_layers: Number of hidden layers of the head, each with a ReLU.
        hidden_size: The width of hidden layers.
        dense: Apply the head at every position by itself, in place of pooling a map.
        pull: The weight of the gradient from above.
    """

    own_unit = True

    def __init__(
        self,
        activation: Activation,
        context_size: int = 0,
        *,
        loss: Loss,
        hidden_layers: int = 1,
        hidden_size: int = 256,
        dense: bool = False,
        pull: float = 1.0,
    ) -> None:
        super().__init__(activation, context_size)
        if not context_size:
            raise DniFxError("guided_head needs labels, a row a sample: give classes= (or context_size=)")
        if not isinstance(pull, int | float) or not 0 < pull < math.inf:
            raise DniFxError(f"guided_head: pull={pull!r}; the weight of the gradient from above is positive")
        self.loss = loss
        self.dense = dense
        self.pull = float(pull)
        self.is_map = activation.axis == 1 and len(activation.shape) > 2
        positions = 1
        if self.is_map and not dense:
            positions = GRID ** (len(activation.shape) - 2)
        hidden = check_size("guided_head", "hidden_size", hidden_size)
        count = check_size("guided_head", "hidden_layers", hidden_layers, least=0)
        sizes = [self.features * positions] + [hidden] * count
        layers: list[nn.Module] = []
        for n_in, n_out in zip(sizes[:-1], sizes[1:], strict=True):
            layers += [nn.Linear(n_in, n_out), nn.ReLU()]
        self.head = nn.Sequential(*layers, nn.Linear(sizes[-1], context_size))
        self.loss_scale: LossScale | None = None  # also the factor of the head's own loss

    def configure(self, *, loss_scale: LossScale | None, centered: bool) -> None:
        self.loss_scale = loss_scale

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, activation: Tensor, labels: Tensor | None = None) -> Tensor:
        """The gradient of each sample's own loss.

        Args:
            activation: Detached.
            labels: Integers (N,), or one for each position; or rows of `context_size` floats.
        """
        assert labels is not None
        with torch.enable_grad():
            h = activation.detach().requires_grad_()
            mean = self._mean_loss(*self._rows(h, labels))
            (predicted,) = torch.autograd.grad(mean, h, create_graph=True)
        predicted = predicted * self.samples(h)
        fitted: Any = _Fitted.apply
        factor = 1.0 if self.loss_scale is None else self.loss_scale.factor()
        result: Tensor = fitted(predicted, mean, self.pull, factor)
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
    """Return the prediction; in backward, pass its error on, `pull` times, and begin the backward pass of the loss."""

    @staticmethod
    def forward(ctx: Any, predicted: Tensor, mean: Tensor, pull: float, factor: float | Tensor) -> Tensor:
        ctx.pull, ctx.factor = pull, factor
        ctx.set_materialize_grads(False)
        return predicted.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, error: Tensor | None) -> tuple[Any, ...]:
        if error is None:  # the error was not finite, so the head's own loss may be wrong, too
            return (None,) * 4
        own = torch.ones((), device=error.device) * ctx.factor  # float16 cannot hold the factor
        return ctx.pull * error, own, None, None
