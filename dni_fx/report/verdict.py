"""What a plan does for a model, in a few sentences: memory, time, learning, and whether it is worth it."""

from dni_fx.plans import Forecast, Outlook, Plan
from dni_fx.units import bytes_text

__all__ = ["plan_verdict"]

_LEARNS = "`dni-fx compare` measures how well it learns on your data."


def plan_verdict(plan: Plan) -> list[str]:
    """The sentences; none for a plan of an older version, which has no forecast."""
    if not plan.states and not plan.cuts:
        return [f"The net has no cuts: {plan.why}."]
    if plan.states and not plan.cuts:
        return [
            "Cut in time: each window of steps trains on a predicted gradient of the windows after it, for the memory "
            f"of one window. {_LEARNS}"
        ]
    if plan.forecast is None:
        return []
    return [_costs(plan, plan.forecast), f"{_worth(plan.forecast)} {_learning(plan)} {_LEARNS}"]


def allocated(forecast: Forecast, outlook: Outlook) -> float:
    """The predicted bytes that a step allocates at its peak: parameters, their state and the batch are older."""
    static = forecast.synthesizer_bytes if outlook is forecast.cut else 0
    return outlook.peak_bytes - forecast.resident_bytes - static


def _costs(plan: Plan, forecast: Forecast) -> str:
    before, after = allocated(forecast, forecast.backprop), allocated(forecast, forecast.cut)
    ratio = forecast.cut.step / forecast.backprop.step if forecast.backprop.step else 1.0
    share = f", {100 * after / before:.0f} %" if before else ""
    return (
        f"Cut into {len(plan.segments)} segments, a training step is predicted to allocate {bytes_text(after)} where "
        f"backprop allocates {bytes_text(before)}{share}, and to take {ratio:.2f} times its time."
    )


def _worth(forecast: Forecast) -> str:
    """Whether the cuts save memory or time, and whether checkpointing saves as much."""
    slowest = forecast.cut.slowest / forecast.backprop.slowest if forecast.backprop.slowest else 1.0
    alone = f"with a device for each segment, a step takes {slowest:.2f} times backprop's time"
    if not forecast.saves:
        return "The cuts save less than 5 % here, of memory or of time on several devices: train with backprop."
    if not forecast.saves_memory:
        return f"The cuts save no memory; {alone}."
    exact = forecast.checkpoint
    if exact is None:
        return f"{alone[0].upper()}{alone[1:]}."
    other = f"{bytes_text(allocated(forecast, exact))} for {exact.step / max(forecast.backprop.step, 1e-30):.2f} times"
    if exact.peak_bytes <= forecast.cut.peak_bytes:
        return f"Checkpointing the same segments needs {other} the time and is exact: take it on one device; {alone}."
    return f"Checkpointing the same segments needs {other} the time, and is exact."


def _learning(plan: Plan) -> str:
    exits = [cut.exit for cut in plan.cuts if cut.exit is not None]
    if len(exits) < len(plan.cuts):
        return "Synthesizers predict the gradients: nets with many cuts learn less well than by backprop."
    if all(exit.heads for exit in exits):
        return "Small heads of their own train the segments below."
    return "Exits through the model's own later layers train the segments below."
