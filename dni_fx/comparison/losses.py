"""The loss that every way minimises: given, returned by the model, or found by the form of outputs and targets."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from dni_fx.bench import mean_square
from dni_fx.errors import DniFxError
from dni_fx.settings import Loss, loss_function

__all__ = ["Objective", "find_objective", "per_position"]


@dataclass(frozen=True)
class Objective:
    """A loss of the model's outputs and a target.

    Attributes:
        name: For people.
        given: What `dni_fx.transform` takes as `loss`; None: the model returns its own, or no target is known.
    """

    name: str
    function: Loss
    given: str | Loss | None = None


def find_objective(loss: str | Loss | None, output: Any, target: Any, *, has_data: bool) -> Objective:
    """The loss for these outputs of the model and this target.

    Raises:
        DniFxError: If none is given, and none is known for them.
    """
    if loss is not None:
        name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
        return Objective(name, loss_function(loss), loss)
    if not has_data and target is None:
        return Objective("mean square of the outputs", lambda outputs, _: mean_square(outputs))
    if target is None:
        if _own_loss(output) is None:
            raise DniFxError("the batches of data= have no target, and the model returns no loss: give loss=")
        return Objective("the model's own loss", lambda outputs, _: _own_loss(outputs))
    if isinstance(output, Tensor) and isinstance(target, Tensor) and output.is_floating_point():
        if target.is_floating_point() and target.shape == output.shape:
            return Objective("mse_loss", F.mse_loss, "mse_loss")
        last_axis = not target.is_floating_point() and output.shape[:-1] == target.shape and target.dim() > 1
        first_axis = not target.is_floating_point() and (*output.shape[:1], *output.shape[2:]) == target.shape
        if last_axis and not first_axis:
            return Objective("cross_entropy", per_position, per_position)
        if first_axis and not last_axis:
            return Objective("cross_entropy", F.cross_entropy, "cross_entropy")
    raise DniFxError(
        f"no loss is known for outputs {_form(output)} and targets {_form(target)}: give loss=, "
        "a function of (outputs, target), such as the cross entropy of outputs[0]"
    )


def per_position(output: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of outputs (N, T, classes) and labels (N, T)."""
    return F.cross_entropy(output.flatten(0, -2), target.flatten())


def _own_loss(output: Any) -> Any:
    """The loss that a model returns, as Hugging Face models do; None if there is none."""
    candidates = [output, getattr(output, "loss", None)]
    if isinstance(output, Mapping):
        candidates.append(output.get("loss"))
    elif isinstance(output, tuple | list) and output:
        candidates.append(output[0])
    scalars = [c for c in candidates if isinstance(c, Tensor) and c.dim() == 0 and c.is_floating_point()]
    return scalars[0] if scalars else None


def _form(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"of type {type(value).__name__}"
    return f"{'x'.join(map(str, value.shape)) or 'scalar'} {str(value.dtype).removeprefix('torch.')}"
