"""A synthesizer without an optimizer: linear, fitted to the targets in closed form."""

import torch
from torch import Tensor

from dni_fx.errors import DniFxError
from dni_fx.ops import CountsSteps, without_autocast
from dni_fx.synthesizers.base import Activation, Synthesizer, centered, check_size
from dni_fx.synthesizers.loss_scale import LossScale
from dni_fx.synthesizers.registry import register

__all__ = ["LeastSquares"]


@register("least_squares")
class LeastSquares(CountsSteps, Synthesizer):
    """One linear layer over the feature axis: the ridge regression of targets, with smaller weights for older ones.

    There is no learning rate, and the scale of the targets makes no difference. Where targets are made of its own
    predictions, the solution is the fixed point of least-squares temporal differences (Bradtke and Barto 1996): on
    streams without an end predictions grow without limit, unless they are discounted.
    With DistributedDataParallel all processes use the solution of the first one.

    With F features and a constant one, memory is 3 (F + 1)^2 numbers. A step takes the time of two linear layers; every
    `every` steps F + 1 equations are solved.

    Args:
        memory: Steps after which the weight of a target has fallen to 1 / e.
        ridge: Added to the mean squares of the features, as a share of their mean.
        every: Steps between two solutions.
    """

    own_unit = True
    weight: Tensor
    squares: Tensor
    products: Tensor

    def __init__(
        self,
        activation: Activation,
        context_size: int = 0,
        *,
        memory: int = 100,
        ridge: float = 1e-2,
        every: int = 5,
    ) -> None:
        super().__init__(activation, context_size)
        if activation.dtype.itemsize < 4:
            raise DniFxError(f"least_squares solves equations, for which {activation.dtype} is too coarse: use mlp")
        if isinstance(ridge, bool) or not isinstance(ridge, int | float) or not ridge > 0:
            raise DniFxError(f"least_squares: ridge={ridge!r}; a positive number")
        self.keep = 1 - 1 / check_size("least_squares", "memory", memory, least=2)
        self.every = check_size("least_squares", "every", every)
        self.ridge = ridge
        self.loss_scale: LossScale | None = None
        self.centered = False
        size = self.features + context_size + 1
        self.register_buffer("weight", torch.zeros(size, self.features, device=activation.device))
        self.register_buffer("squares", torch.zeros(size, size, device=activation.device))
        self.register_buffer("products", torch.zeros(size, self.features, device=activation.device))
        self.steps = 0  # not on the device, which a look would wait for

    def configure(self, *, loss_scale: LossScale | None, centered: bool) -> None:
        self.loss_scale, self.centered = loss_scale, centered

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
        joined = self.with_context(activation, context).movedim(self.axis, -1)
        rows = joined.reshape(-1, joined.shape[-1])
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1).to(self.weight.dtype)
        with without_autocast(rows.device.type):  # equations need full precision
            predicted = rows @ self.weight
            if self.centered:
                predicted = centered(predicted)
        if torch.is_grad_enabled():
            predicted = self._fitting_in_backward(rows, predicted, self.samples(activation))
        return predicted.reshape(*joined.shape[:-1], self.features).movedim(-1, self.axis)

    @torch.compiler.disable(reason="least squares are fitted when the targets come")  # type: ignore[untyped-decorator]
    def _fitting_in_backward(self, rows: Tensor, predicted: Tensor, batch: int) -> Tensor:
        """Return the same prediction, requiring a gradient, which is the error that the weight is fitted by."""
        following = predicted.detach().requires_grad_()
        following.register_hook(lambda error: self._post_backward(rows, predicted, batch, error))
        return following

    @torch.no_grad()
    def _post_backward(self, rows: Tensor, predicted: Tensor, batch: int, error: Tensor | None) -> None:
        """Fit the weight.

        Args:
            error: (prediction - target) / batch size * loss scale, zero in rows without a target; None: not finite.
        """
        if error is None or not len(rows):
            return
        error = error * (batch if self.loss_scale is None else batch / self.loss_scale.factor())
        rows = rows * (error != 0).any(1, keepdim=True)
        # In place: DistributedDataParallel broadcasts these very buffers.
        self.squares.mul_(self.keep).addmm_(rows.T, rows)
        self.products.mul_(self.keep).addmm_(rows.T, predicted - error)
        self.steps += 1
        if self.steps % self.every == 0:
            ridge = self.ridge * self.squares.diagonal().mean()
            factor, failed = torch.linalg.cholesky_ex(self.squares + torch.diag(ridge.expand(len(self.squares))))
            self.weight.copy_(torch.where(failed == 0, torch.cholesky_solve(self.products, factor), self.weight))
