"""The factor by which a training loop multiplies the mean loss, measured at the output of a net that has labels."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dni_fx.model import tensors_in
from dni_fx.ops import LossMeasure, is_readable, without_autocast
from dni_fx.runtime.dni import LikelyLoss
from dni_fx.runtime.module import DecoupledModule
from dni_fx.settings import Loss, loss_function

__all__ = ["measure_loss_factor"]


def measure_loss_factor(net: DecoupledModule, loss: str | Loss | None) -> None:
    """In the first training passes with labels, measure the factor of the loss for each segment's `accumulation`.

    Args:
        loss: The training loss; None: cross entropy, if the labels are classes.
    """
    if net.dni.segments and (loss is not None or net.dni.rewrite.classes):
        net.dni.likely_loss = LikelyLoss(loss_function(loss or "cross_entropy"))
        net.register_forward_hook(_post_forward, with_kwargs=True)


def _post_forward(net: DecoupledModule, _args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
    if torch.compiler.is_compiling() or not (net.training and torch.is_grad_enabled()):
        return
    likely, labels = net.dni.likely_loss, kwargs.get("dni_context")
    if likely is None or not isinstance(labels, Tensor):
        return
    attached = [tensor for tensor in tensors_in(output) if tensor.requires_grad]
    likely.tries -= 1
    if likely.tries <= 0:
        net.dni.likely_loss = None
    if len(attached) == 1:
        attached[0].register_hook(partial(_measure, net, likely.loss, attached[0].detach(), labels))


def _measure(net: DecoupledModule, loss: Loss, output: Tensor, labels: Tensor, gradient: Tensor) -> None:
    """Compare the gradient at the output with the gradient of the mean loss; a device is not waited for."""
    loss_scale = next(crossing.loss_scale for crossing in net.dni.crossings.values())
    followed: Any = 1.0 if loss_scale is None else loss_scale.factor()
    for rows in (output, output.flatten(0, -2)) if output.dim() > 2 else (output,):
        measure = _compared(loss, rows, labels if rows is output else labels.flatten(), gradient / followed)
        if measure is not None:
            for segment in net.dni.segments:
                segment.accumulation.measures.append(measure)
    if is_readable(gradient):
        factors = [segment.accumulation.factor for segment in net.dni.segments]
        if any(factor is not None for factor in factors):
            net.dni.likely_loss = None
        for segment in net.dni.segments:
            segment.accumulation.check_divided()


def _compared(loss: Loss, output: Tensor, labels: Tensor, gradient: Tensor) -> LossMeasure | None:
    """The number c with gradient = c * d loss(output, labels) / d output; None if there is no such loss."""
    with torch.enable_grad(), without_autocast(output.device.type):
        h = output.float().requires_grad_()
        try:
            (unit,) = torch.autograd.grad(loss(h, labels), h)
        except Exception:  # the labels may be for another loss, and a user's own loss may raise any error
            return None
    unit, gradient = unit.flatten(), gradient.detach().flatten().float()
    factor = gradient.dot(unit) / unit.dot(unit)
    return LossMeasure(factor, (gradient - factor * unit).norm() / gradient.norm())
