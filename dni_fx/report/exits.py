"""The exit at a cut, in words."""

from collections.abc import Sequence

from dni_fx.plans import ExitPlan
from dni_fx.units import quantity

__all__ = ["exit_text"]

_SHOWN = 8  # nodes

_WEIGHTS = {
    "shared": "the model's own weights, which it trains",
    "readonly": "the model's own weights, which it does not train",
    "copy": "copies of the weights",
    "fresh": "new weights",
    "ema": "a running mean of the weights",
}


def exit_text(planned: ExitPlan) -> str:
    """The nodes that an exit runs, whose weights they use, and what they cost."""
    if planned.heads:
        outputs = ", ".join(output.node for output in planned.heads)
        return f"a small head of its own for {outputs}, in place of the model's later layers"
    units = {0: "no unit", 1: "the next unit", "all": "all units"}.get(planned.units, f"the next {planned.units} units")
    if planned.frozen_units:
        units = f"{units} (frozen)"
    if planned.unit is not None:
        units = f"{units}, which the segment above runs anyway: {_listed(planned.unit.nodes)};"
    cost, weights = quantity(planned.flops, "FLOPs"), _WEIGHTS[planned.weights]
    if planned.constant:
        weights = f"{weights} (but not {_listed(planned.constant)})"
    if planned.tokens < 1:
        cost = f"{cost} (the loss is of {100 * planned.tokens:.3g} % of the positions)"
    if planned.copied and planned.not_copied:
        weights = f"{weights} behind the units"
    return f"{units} and the tail, {cost}, with {weights}: {_listed(planned.nodes)}"


def _listed(nodes: Sequence[str]) -> str:
    names = list(nodes)
    if len(names) > _SHOWN:
        names[_SHOWN - 3 : -2] = [f"... ({len(names) - _SHOWN + 1} more)"]
    return ", ".join(names)
