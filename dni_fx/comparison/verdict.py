"""What a comparison says, in two sentences, and what to try next."""

import math

from dni_fx.comparison.record import Comparison, Record

__all__ = ["best_cut", "verdict"]

_SMALL = 0.01  # of backprop's loss: too little to matter
_LESS = 0.95  # of checkpointing's memory or time: less than the noise is no gain


def verdict(comparison: Comparison) -> list[str]:
    """What decoupling costs in loss and gains in memory and time; checkpointing beside it; what to try next."""
    best = best_cut(comparison)
    if best is None:
        return ["No cut model was trained: below is why."]
    return [_costs(comparison, best), *_beside_checkpointing(comparison, best), *_next(comparison, best)]


def best_cut(comparison: Comparison) -> Record | None:
    """Of the cut models whose loss is not clearly higher than the lowest, the one with the least activations."""
    cut = comparison.cut
    if not cut:
        return None
    lowest = min(cut, key=comparison.final_loss)
    alike = [r for r in cut if not (comparison.has_data and comparison.difference(r, lowest).is_clear)]
    return min(alike, key=lambda record: record.activations)


def _costs(comparison: Comparison, best: Record) -> str:
    """The loss beside backprop's, then memory and time."""
    backprop, steps = comparison.backprop, comparison.steps
    gains = []
    if best.activations and backprop.activations:  # measured
        gains.append(f"{_percent(best.activations, backprop.activations)} of backprop's activation memory")
    if math.isfinite(best.step_seconds / backprop.step_seconds):
        gains.append(f"{best.step_seconds / backprop.step_seconds:.2f} times its time a step")
    needs = f"It needs {' and '.join(gains)}." if gains else ""
    if best.scores and backprop.scores:
        needs += f" Its score is {best.scores[-1][1]:.4g}, backprop's {backprop.scores[-1][1]:.4g}."
    if not comparison.has_data:
        return f"{_cut(best)}, the model trains. {needs}".strip()
    own, reference = comparison.final_loss(best), comparison.final_loss(backprop)
    after = f"after {steps} step{'s' * (steps != 1)}"
    judged = _judged(comparison, best)
    losses = f"the model has a loss of {own:.4g} {after}, backprop of {reference:.4g}"
    return f"{_cut(best)}, {losses}: {judged}. {needs}".strip()


def _cut(record: Record) -> str:
    cut = f"{record.segments} segments"
    return f"Cut into {cut}" if record.name == cut else f"Cut into {cut} ({record.name})"


def _judged(comparison: Comparison, record: Record) -> str:
    """The difference from backprop's loss, and whether it is more than the noise of batches."""
    difference = comparison.difference(record)
    if not math.isfinite(difference.error):
        return "too few steps to compare"
    way = "higher" if difference.value > 0 else "lower"
    if not difference.is_clear:
        return f"{abs(difference.value):.2g} {way}, ±{difference.error:.1g}, which is no clear difference"
    reference = abs(comparison.final_loss(comparison.backprop))
    share = f" ({100 * difference.value / reference:+.1f} %)" if reference else ""
    return f"{way} by {abs(difference.value):.2g}{share}"


def _is_worse(comparison: Comparison, record: Record) -> bool:
    """Whether the loss of a cut model is clearly higher than backprop's, by more than matters."""
    difference = comparison.difference(record)
    return difference.is_clear and difference.value > _SMALL * abs(comparison.final_loss(comparison.backprop))


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
    saves = best.activations < _LESS * other.activations
    faster = best.step_seconds < _LESS * other.step_seconds
    worse = comparison.has_data and _is_worse(comparison, best)
    difference = comparison.difference(best)
    if worse and not saves:
        choice = "it is the better choice here"
    elif worse:
        choice = "take it unless the memory must be lower still, or segments run on devices of their own"
    elif saves:
        choice = f"the cut model needs less memory{' and less time' if faster else ''}"
    elif faster:
        more = other.activations < _LESS * best.activations
        choice = f"the cut model needs less time, {'but more memory' if more else 'and no less memory'}"
    elif comparison.has_data and difference.is_clear and difference.value < 0:
        choice = "the cut model has the lower loss, and needs no less memory or time"
    else:
        choice = "it is the better choice here"
    exact = other.losses == comparison.backprop.losses
    loss = "gives backprop's loss" if exact else f"has a loss of {comparison.final_loss(other):.4g}"
    return [
        f"Checkpointing {loss} with {_percent(other.activations, comparison.backprop.activations)} of "
        f"the activation memory and {other.step_seconds / comparison.backprop.step_seconds:.2f} times the time: "
        f"{choice}."
    ]


def _next(comparison: Comparison, best: Record) -> list[str]:
    """What to try next; none where cutting saves nothing."""
    if not comparison.has_data:
        return ["Next: give data=, batches of your own; the losses are of noise here, and mean nothing."]
    if best.activations > (1 - _SMALL) * comparison.backprop.activations:
        return []
    if not _is_worse(comparison, best):
        return [f"Next: train for longer (steps={10 * comparison.of}), to see whether it stays so."]
    return ["Next: fewer cuts (cuts=2) may lose less."] if best.segments > 2 else []


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.0f} %"
