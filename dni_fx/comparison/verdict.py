"""What a comparison says, in two sentences, and what to try next."""

import math

from dni_fx.comparison.record import Comparison, Record

__all__ = ["best_cut", "verdict"]

_SMALL = 0.01  # of backprop's loss: too little to matter


def verdict(comparison: Comparison) -> list[str]:
    """What decoupling costs in loss and gains in memory and time; checkpointing beside it; what to try next."""
    best = best_cut(comparison)
    if best is None:
        reasons = {r.failed or "it has no cut" for r in comparison.records[2:]}
        return [f"No cut model was trained: {'; '.join(sorted(reasons))}."]
    return [_costs(comparison, best), *_beside_checkpointing(comparison, best), _next(comparison, best)]


def best_cut(comparison: Comparison) -> Record | None:
    """The cut model with the lowest final loss; where losses mean nothing, with the least activations."""
    measured = [r for r in comparison.cut if math.isfinite(r.loss_after(comparison.steps))]
    if not comparison.has_data:
        return min(measured, key=lambda r: r.activations, default=None)
    return min(measured, key=lambda r: r.loss_after(comparison.steps), default=None)


def _costs(comparison: Comparison, best: Record) -> str:
    gains = (
        f"{_percent(best.activations, comparison.backprop.activations)} of its activation memory and "
        f"{best.step_seconds / comparison.backprop.step_seconds:.2f} times its time a step"
    )
    if not comparison.has_data:
        return f"{_cut(best)}, the model trains with {gains}, beside backprop."
    own, reference = best.loss_after(comparison.steps), comparison.backprop.loss_after(comparison.steps)
    return (
        f"{_cut(best)}, the model comes to a loss of {own:.4g} after "
        f"{comparison.steps} steps, backprop to {reference:.4g} ({_judged(comparison, best)}); it trains with {gains}."
    )


def _cut(record: Record) -> str:
    cut = f"{record.segments} segments"
    return f"Cut into {cut}" if record.name == cut else f"Cut into {cut} ({record.name})"


def _judged(comparison: Comparison, record: Record) -> str:
    """The difference from backprop's loss, and whether it is more than chance."""
    difference = comparison.difference(record)
    if not math.isfinite(difference.error):
        return "too few steps to compare"
    if not difference.is_clear:
        return "no clear difference"
    reference = abs(comparison.backprop.loss_after(comparison.steps))
    share = f", {100 * difference.value / reference:+.1f} %" if reference else ""
    return f"{'higher' if difference.value > 0 else 'lower'} by {abs(difference.value):.2g}{share}"


def is_worse(comparison: Comparison, record: Record) -> bool:
    """Whether the loss of a cut model is clearly higher than backprop's, by more than matters."""
    difference = comparison.difference(record)
    return difference.is_clear and difference.value > _SMALL * abs(comparison.backprop.loss_after(comparison.steps))


def _beside_checkpointing(comparison: Comparison, best: Record) -> list[str]:
    """A sentence on checkpointing, which is exact."""
    other = comparison.records[1]
    if other.failed or not other.activations:
        return []
    if min(best.activations, other.activations) > (1 - _SMALL) * comparison.backprop.activations:
        return [
            "Neither this nor checkpointing saves memory here: backprop is the better choice, unless segments run on "
            "devices of their own."
        ]
    saves = best.activations < other.activations
    faster = best.step_seconds < other.step_seconds
    worse = comparison.has_data and is_worse(comparison, best)
    if worse and not saves:
        choice = "it is the better choice here"
    elif worse:
        choice = "take it unless the memory must be lower still, or segments run on devices of their own"
    elif saves:
        choice = f"the cut model needs less memory{' and less time' if faster else ''}"
    elif faster:
        choice = "it needs less memory, the cut model less time"
    else:
        choice = "it is the better choice here"
    return [
        f"Checkpointing gives backprop's loss with {_percent(other.activations, comparison.backprop.activations)} of "
        f"the activation memory and {other.step_seconds / comparison.backprop.step_seconds:.2f} times the time: "
        f"{choice}."
    ]


def _next(comparison: Comparison, best: Record) -> str:
    if not comparison.has_data:
        return "Next: give data=, batches of your own; the losses are of noise here, and mean nothing."
    if is_worse(comparison, best):
        if best.segments > 2:
            return "Next: fewer cuts, such as cuts=2, lose less."
        return "Next: cut at another place (cuts=)."
    return f"Next: train for longer (steps={10 * comparison.steps}), to see whether it stays so."


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.0f} %"
