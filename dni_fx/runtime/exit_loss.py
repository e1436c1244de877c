"""The loss in which an exit ends, with the target of a call."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dni_fx.errors import ContextError, DniFxError, described, first_line
from dni_fx.model import at_path
from dni_fx.ops import without_autocast
from dni_fx.settings import Loss, loss_name

__all__ = ["chunked_loss", "exit_loss", "is_cross_entropy", "is_linear", "leave_out_linear", "sampled"]

MOST_LOGITS = 2**22  # that are there at once; more are computed in chunks


def exit_loss(loss: Loss, outputs: Any, context: Any, *, features_last: bool = False) -> Tensor:
    """The loss of the outputs of an exit, a scalar with gradient.

    Args:
        context: The target of the call.
        features_last: What outputs (N, K, K) with labels (N, K) are: (N, T, K), and not (N, K, T).

    Raises:
        ContextError: If there is no target, or the loss does not take it.
        DniFxError: If the loss returns no scalar with gradient.
    """
    if context is None:
        raise ContextError("the exits need the target of the loss: while training, call net(..., dni_context=target)")
    try:
        value: object = loss(*_for_loss(loss, outputs, context, features_last))
    except Exception as error:  # the user's function may raise any error
        raise ContextError(
            f"loss={described(loss)} raises {type(error).__name__} ({first_line(error)}) on the outputs and the "
            "dni_context of a call"
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        raise DniFxError(f"loss={described(loss)} returns {described(value)}, not a scalar with gradient")
    return value.reshape(())


def _for_loss(loss: Loss, outputs: Any, target: Any, features_last: bool) -> tuple[Any, Any]:
    """The arguments of a loss, as the losses of torch.nn.functional take them.

    Outputs (N, T, K) and labels (N, T) become rows: these losses take outputs (N, K, T). Outputs (N, 1) and numbers
    (N,) get one shape: these losses would broadcast them.
    """
    if not (isinstance(outputs, Tensor) and isinstance(target, Tensor) and _takes_rows(loss)):
        return outputs, target
    if target.is_floating_point() and target.squeeze().shape == outputs.squeeze().shape:
        return outputs, target.reshape(outputs.shape)
    of_positions = not target.is_floating_point() and outputs.dim() > 2 and target.shape == outputs.shape[:-1]
    fits_as_it_is = target.shape == outputs.shape[:1] + outputs.shape[2:]
    if not of_positions or (fits_as_it_is and not features_last):
        return outputs, target
    return outputs.flatten(0, -2), target.flatten()


def _takes_rows(loss: Loss) -> bool:
    """Whether the loss is one of torch.nn.functional, or a cross entropy with options."""
    return bool(loss_name(loss)) or _cross_entropy_options(loss) is not None


def chunked_loss(loss: Loss, features: Tensor, weight: Tensor, bias: Tensor | None, target: Any) -> Tensor | None:
    """The cross entropy of `linear(features, weight, bias)`, whose logits are never there at once.

    Args:
        features: Of each position, on the last axis.
        target: A label for each position.

    Returns:
        None if the loss is no cross entropy of positions, or if the logits are few.
    """
    options = _cross_entropy_options(loss)
    positions = features.numel() // features.shape[-1]
    is_label = isinstance(target, Tensor) and not target.is_floating_point() and target.shape == features.shape[:-1]
    if options is None or not is_label or positions * len(weight) <= MOST_LOGITS:
        return None
    rows = max(1, MOST_LOGITS // len(weight))
    flat, labels = features.flatten(0, -2).to(weight.dtype), target.flatten()
    with without_autocast(features.device.type):
        if options.get("label_smoothing") or not hasattr(F, "linear_cross_entropy"):  # new in torch 2.13
            return _in_chunks(flat, weight, bias, labels, rows, **options)
        chunks = nn.LinearCrossEntropyOptions(batch_chunk_size=rows, chunking_method=None, acc_policy="compact")
        value: Tensor = F.linear_cross_entropy(flat, weight, labels, linear_bias=bias, options=chunks, **options)
    return value


def _in_chunks(
    features: Tensor,
    linear: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    rows: int,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """The cross entropy of so many rows at a time; the backward pass computes their logits again."""
    options: dict[str, Any] = {"weight": weight, "ignore_index": ignore_index, "label_smoothing": label_smoothing}

    def loss_of(some: Tensor, own: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(some, linear, bias), own, reduction="sum", **options)

    chunks = zip(features.split(rows), labels.split(rows), strict=True)
    losses = [checkpoint(loss_of, some, own, use_reentrant=False) for some, own in chunks]
    total = torch.stack(losses).sum()
    if reduction == "sum":
        return total
    return total / _divisor(labels, weight, ignore_index)


def _divisor(labels: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor:
    """What the mean of a cross entropy divides by: the number of labels, or the sum of their weights."""
    counts = labels != ignore_index
    return counts.sum() if weight is None else (weight[labels.where(counts, 0)] * counts).sum()


def sampled(
    loss: Loss, features: Tensor, target: Any, share: float, begin: Tensor
) -> tuple[Loss, Tensor, Tensor, Tensor | float]:
    """The cross entropy of some positions, as an estimate of the cross entropy of all of them.

    Args:
        features: Of each position, on the last axis.
        target: A label for each position.
        share: Of the positions.
        begin: The first position, an integer on the device of the features.

    Returns:
        The loss of the sampled positions, their features, their labels, and the factor for the loss.

    Raises:
        ContextError: If the target is no label for each position.
    """
    options = _cross_entropy_options(loss)
    assert options is not None
    if not isinstance(target, Tensor) or target.is_floating_point() or target.shape != features.shape[:-1]:
        raise ContextError(
            f"exit: tokens={share:g} needs a label for each position, of the shape {tuple(features.shape[:-1])}; the "
            f"dni_context of the call is {described(target)}"
        )
    labels = target.flatten()
    count = max(1, round(share * len(labels)))
    chosen = (torch.arange(count, device=begin.device) * len(labels) // count + begin) % len(labels)
    is_mean = options.get("reduction", "mean") == "mean"
    divisor = _divisor(labels, options.get("weight"), options["ignore_index"]) if is_mean else 1.0
    if isinstance(divisor, Tensor):
        divisor = divisor.to(torch.promote_types(features.dtype, torch.float32))
    of_some = functools.partial(F.cross_entropy, **options | {"reduction": "sum"})
    return of_some, features.flatten(0, -2)[chosen], labels[chosen], len(labels) / count / divisor


def is_cross_entropy(loss: Loss) -> bool:
    """Whether a loss is the cross entropy of torch, with options or without."""
    return _cross_entropy_options(loss) is not None


def _cross_entropy_options(loss: Loss) -> dict[str, Any] | None:
    """The options of a loss that is a cross entropy; None: the loss is another function."""
    given: Any = loss
    if isinstance(given, nn.CrossEntropyLoss):
        names = ("weight", "reduction", "ignore_index", "label_smoothing")
        return {name: getattr(given, name) for name in names} if given.reduction != "none" else None
    keywords: dict[str, Any] = {}
    if isinstance(given, functools.partial) and not given.args:
        given, keywords = given.func, given.keywords
    allowed = {"weight", "reduction", "ignore_index", "label_smoothing"} >= keywords.keys()
    return {"ignore_index": -100} | keywords if given is F.cross_entropy and allowed else None


def is_linear(module: object) -> bool:
    """Whether a module computes `linear(features, weight, bias)` and nothing else."""
    return type(module) is nn.Linear and not (module._forward_hooks or module._forward_pre_hooks)


def leave_out_linear(graph: fx.Graph, net: nn.Module, borrowed: Sequence[str]) -> bool:
    """Let a program return the arguments of its last linear layer; without such a layer, change nothing.

    Args:
        graph: Of a program; a call of a module has the module as the first argument.
        borrowed: The paths in `net` of the placeholders with the names `borrowed_<index>`.

    Returns:
        Whether there is such a layer: it computes the one output.
    """
    output = graph.output_node()
    last: Any = output.args[0]
    if not isinstance(last, fx.Node) or last.op != "call_function" or last.kwargs or len(last.users) > 1:
        return False
    if last.target in (F.linear, torch.ops.aten.linear.default):
        linear: tuple[Any, ...] = (*last.args, None)[:3]
    else:
        module: Any = last.args[0] if last.args else None
        if not isinstance(module, fx.Node) or not module.name.startswith("borrowed_") or len(last.args) != 2:
            return False
        if not is_linear(at_path(net, borrowed[int(module.name.removeprefix("borrowed_"))])):
            return False
        linear = (last.args[1], module)
    output.args = (linear,)
    graph.erase_node(last)
    return True
