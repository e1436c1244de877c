"""The synthesizers of a plan: which factory makes the one at each crossing."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from dni_fx.errors import DniFxError
from dni_fx.model import placed
from dni_fx.plans import CrossingTensor, Plan, TimeCutPlan, crossings
from dni_fx.settings import Loss, Settings, loss_function
from dni_fx.synthesizers.base import Activation, Factory
from dni_fx.synthesizers.registry import resolve

__all__ = ["activation_of", "factories", "make_synthesizer", "settings_at"]

# Above this, `least_squares` is too slow for a default: its equations take time with the cube of the features.
_MOST_SOLVED = 2048


def activation_of(crossing: CrossingTensor | TimeCutPlan, device: torch.device | str = "cpu") -> Activation:
    """The input of the synthesizer at a crossing, batch first; for a state, all of its tensors, as one vector a sample.

    A tensor without a batch axis is one sample: its batch has one entry.
    """
    if isinstance(crossing, CrossingTensor):
        axes = [crossing.batch, *(i for i in range(len(crossing.shape)) if i != crossing.batch)]  # in the new order
        shape = tuple(1 if i is None else crossing.shape[i] for i in axes)
        axis = axes.index(crossing.axis % len(crossing.shape))
        axis = -1 if axis == len(shape) - 1 else axis
        return Activation(shape, getattr(torch, crossing.dtype), torch.device(device), axis, crossing.rows)
    first = crossing.tensors[0]
    shape = (first.shape[first.axis], sum(tensor.features for tensor in crossing.tensors))
    return Activation(shape, getattr(torch, first.dtype), torch.device(device), -1)


def settings_at(crossing: CrossingTensor, settings: Settings) -> Settings:
    """The settings for one crossing: without a batch axis there are no rows to pair with a context."""
    if crossing.batch is not None:
        return settings
    return replace(settings, classes=None, context_size=None, loss=None, context_from=None)


def factories(
    plan: Plan, synthesizers: Mapping[str, str | Factory], loss: str | Loss | None = None, *, dense: bool = False
) -> tuple[dict[str, str], dict[str, Factory]]:
    """The name and the factory of the synthesizer at each crossing of a plan.

    Args:
        synthesizers: By crossing, as `resolve` takes them. For a cut in time "auto" is `least_squares`, or `mlp` for
            many features or a narrow dtype: `benchmarks/results/time_cut.md`.
        loss: For the synthesizers at cuts in depth that differentiate a loss.
        dense: As `resolve` takes it.

    Raises:
        DniFxError: If a synthesizer is for no crossing of the plan, or a crossing has none; and as `resolve` does.
    """
    function = None if loss is None else loss_function(loss)
    names: dict[str, str] = {}
    made: dict[str, Factory] = {}
    for name, crossing in crossings(plan):
        if name not in synthesizers:
            raise DniFxError(f"the plan has no synthesizer for its crossing {name!r}")
        synthesizer, activation = synthesizers[name], activation_of(crossing)
        if isinstance(crossing, CrossingTensor):
            usable = function if crossing.batch is not None or synthesizer != "auto" else None
            names[name], made[name] = resolve(
                synthesizer, activation.shape, activation.axis, usable, dense=dense, for_maps=plan.for_maps
            )
        else:
            chosen = _auto_in_time(activation) if synthesizer == "auto" else synthesizer
            names[name], made[name] = resolve(chosen, activation.shape, activation.axis)
    strange = sorted(synthesizers.keys() - names.keys())
    if strange:
        raise DniFxError(f"the plan has a synthesizer for {strange[0]!r}, which is no crossing of it")
    return names, made


def make_synthesizer(factory: Factory, activation: Activation, context_size: int) -> nn.Module:
    """Call a factory; the synthesizer has the device and the dtype of the activation.

    Raises:
        DniFxError: If the factory returns no nn.Module.
    """
    made: object = factory(activation, context_size)
    if not isinstance(made, nn.Module):
        raise DniFxError(
            f"the synthesizer for an activation of shape {list(activation.shape)} is a {type(made).__name__}, "
            "not an nn.Module"
        )
    return placed(made, activation.dtype, activation.device)


def _auto_in_time(activation: Activation) -> str:
    """The default at a cut in time; `least_squares` needs all digits of float32."""
    solves = activation.dtype.itemsize > 2 and activation.features <= _MOST_SOLVED
    return "least_squares" if solves else "mlp"
