"""A batch on its way through a stage: its microbatches, the values of the one that runs, losses and outputs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from dni_fx import ops
from dni_fx.errors import DniFxError, described
from dni_fx.pipeline.stage import Stage

__all__ = ["Batch", "copied"]


class Batch:
    """A batch in one stage.

    Args:
        args, target, kwargs: As in `ScheduleDecoupled.step`.
        loss_fn: For the last stage; None: it computes no loss.

    Attributes:
        given: The arguments of the stage for the microbatch that runs.
        targets: In the last stage: of each microbatch, the second argument of the loss function, in a list.
        passed: The values for the stage above.
        kept: The values from which the gradients at the upper end are predicted.
        losses, outputs: In the last stage: of each microbatch.
    """

    def __init__(
        self,
        stage: Stage,
        count: int,
        args: Sequence[Any],
        target: Any,
        kwargs: Mapping[str, Any],
        loss_fn: Callable[[Any, Any], Tensor] | None = None,
    ) -> None:
        if unknown := kwargs.keys() - stage.arguments - {"dni_context"} if stage.index == 0 else ():
            raise DniFxError(f"the net has no argument {min(unknown)}")
        self.stage, self.loss_fn = stage, loss_fn
        self.given: Sequence[Any] = ()
        self.passed: Sequence[Any] = ()
        self.kept: Sequence[Any] = ()
        self.losses: list[Tensor] = []
        self.outputs: list[Any] = []
        if stage.index == 0:
            if not args and not kwargs:
                raise DniFxError("the first stage needs the arguments of the net: step(x, target=y)")
            own = len(stage.arguments) - stage.takes_context
            if len(args) > own:
                raise DniFxError(f"the net takes {own} arguments, and got {len(args)}: step(x, target=y)")
            named = stage.defaults | ({"dni_context": target} if stage.takes_context else {}) | dict(kwargs)
            others = [named.get(name) for name in stage.arguments[len(args) :]]
            self._args = _split([*args, *others], count)
        self.targets = _split([target], count) if stage.is_last else [[None]] * count

    def run(self, k: int, send: Callable[[Sequence[Any]], None], learns_below: bool) -> None:
        """Run a microbatch; the last stage runs the backward pass of its loss, too.

        Args:
            send: Called with the values for the stage above, before the backward pass.
            learns_below: The stage below gets gradients.
        """
        given = self._args[k] if self.stage.index == 0 else list(self.given)
        for place in self.stage.predicted if learns_below else ():
            given[place] = given[place].requires_grad_()
        self.given = given
        result = self.stage(*given) if self.stage.is_last else self.stage(*given, dni_send=send)
        if not self.stage.is_last:
            self.passed, self.kept = result
            return
        if self.loss_fn is not None:
            loss = self.loss_fn(result, self.targets[k][0])
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                raise DniFxError(f"loss_fn returned {described(loss)}; expected a tensor with one number")
            if torch.is_grad_enabled():
                with ops.without_autocast(loss.device.type):
                    loss.backward()
            self.losses.append(loss.detach())
        self.outputs.append(pytree.tree_map_only(Tensor, Tensor.detach, result))

    def gradients(self) -> list[Tensor | None]:
        """The gradients of the activations from the stage below."""
        return [self.given[place].grad for place in self.stage.predicted]

    def joined_outputs(self) -> Any:
        """The outputs of all microbatches, joined along the first axis; None but in the last stage.

        A list of them, if they have other structures, or more than tensors with axes.
        """
        if not self.outputs:
            return None
        flat = [pytree.tree_flatten(output) for output in self.outputs]
        structure = flat[0][1]
        tensors = all(isinstance(leaf, Tensor) and leaf.dim() for leaves, _ in flat for leaf in leaves)
        if not tensors or any(other != structure for _, other in flat):
            return self.outputs
        joined = [torch.cat(leaves) for leaves in zip(*(leaves for leaves, _ in flat), strict=True)]
        return pytree.tree_unflatten(joined, structure)


def copied(values: Any) -> Any:
    """The values, with copies of tensors."""
    return pytree.tree_map_only(Tensor, Tensor.clone, values)


def _split(values: Sequence[Any], count: int) -> list[list[Any]]:
    """The values of each microbatch: tensors are split along their first axis, others are the same for all."""
    leaves, structure = pytree.tree_flatten(list(values))
    sizes = {len(leaf) for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()}
    if len(sizes) > 1:
        raise DniFxError(
            f"the tensors of a batch have {min(sizes)} and {max(sizes)} rows: each is split along its first axis. "
            "Give a tensor that is for all samples to the model as a buffer"
        )
    if sizes and min(sizes) < count:
        raise DniFxError(
            f"a batch of {min(sizes)} samples does not split into {count} microbatches: give more samples, or ask for "
            "fewer microbatches"
        )
    parts = [leaf.tensor_split(count) if isinstance(leaf, Tensor) and leaf.dim() else [leaf] * count for leaf in leaves]
    return [pytree.tree_unflatten([part[k] for part in parts], structure) for k in range(count)]
