"""How many cuts, and where: the plan with the proven least value, and the other plans that were weighed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dni_fx.cost import CostModel, Pieces, exit_share
from dni_fx.cuts.inside import Recomputing
from dni_fx.errors import DniFxError, NoLegalCutError
from dni_fx.partition import Candidate, Numbers, Objective, Position, chain
from dni_fx.units import bytes_text

__all__ = ["CHARGE", "CHARGE_BELOW", "ROOM", "SHARE", "Choice", "Limits", "best_cuts"]

# A synthesizer at the top must make the heaviest segment lighter by CHARGE, a share of the whole net's load; one at the
# bottom, by CHARGE_BELOW more. Few and late cuts train better (Jaderberg et al. 2017, Table 1: the error grows with
# every cut).
CHARGE, CHARGE_BELOW = 0.05, 0.1

MOST_CUTS = 15  # that are tried: the charges of more cuts come near the load of the whole net

ROOM = 1.5  # if no cut keeps SHARE, the synthesizers may take this many times the least share

_MULTIPLIERS = 12  # Lagrange multipliers that are tried

_TINY = 1e-9  # relative: sums of floats are not exact

SHARE = 0.05  # of the time of backprop's step: all synthesizers together may take as much


@dataclass(frozen=True)
class Limits:
    """The user's limits for a plan."""

    objective: Objective = "memory"
    share: float | None = None  # of a step, for the synthesizers; None: `usual_share`, or ROOM times the least
    budget: int | None = None  # bytes at the peak of a training step
    speeds: tuple[float, ...] | None = None  # of the machine of each segment

    def __post_init__(self) -> None:
        if self.speeds is not None and (self.objective != "throughput" or self.budget is not None):
            raise DniFxError('speeds= is for objective="throughput", and excludes a memory budget')
        number = isinstance(self.share, int | float) and not isinstance(self.share, bool)
        if self.share is not None and not (number and 0 < self.share < math.inf):
            raise DniFxError(
                f"a synthesizer share of {self.share!r}: it is a number above 0, as in 0.05 for 5 % of a step"
            )
        if self.budget is not None and self.budget <= 0:
            raise DniFxError(f"a memory budget of {self.budget} bytes: it must be more than 0")

    @property
    def strict(self) -> "Limits":
        """The same limits, but without the room above SHARE if no cut keeps SHARE."""
        return self if self.share is not None or self.budget is not None else replace(self, share=SHARE)


@dataclass(frozen=True)
class Choice:
    """One plan that was weighed."""

    cuts: tuple[Position, ...]
    value: float  # minimised: load of the heaviest segment + static bytes of the synthesizers + their charges
    charges: float  # part of the value
    bound: float  # no plan with so many cuts that keeps the limits has a lower value
    share: float  # of the time of backprop's step, for the synthesizers
    pieces: tuple[Pieces, ...] = ()  # of each segment, that its backward pass computes again


def best_cuts(
    cost_model: CostModel,
    candidates: Sequence[Candidate],
    segments: int | None,
    limits: Limits,
    inside: Recomputing | None = None,
) -> tuple[Choice, list[Choice], float]:
    """Find the best plan.

    Args:
        candidates: In the order of the graph.
        segments: Number of segments, at most one more than candidates; None: the best number. With a memory budget, the
            most segments.
        inside: Segments compute their activations again: all, or with a memory budget as many as have to.

    Returns:
        The best plan; the runners-up, best first; and the share of a step that was the limit for the synthesizers.

    Raises:
        DniFxError: If no plan keeps the limits, with the numbers.
        NoLegalCutError: If no cuts bring the peak below the memory budget.
    """
    places = _places(cost_model, candidates, limits)
    if limits.speeds is not None:
        found = _uneven(places, limits.speeds)
        return found, [], found.share
    most = min(len(candidates), MOST_CUTS if segments is None else segments - 1)
    counts = range(1, most + 1) if segments is None or limits.budget is not None else [segments - 1]
    least = float(np.sort(places.times)[: counts[0]].sum())
    share = _usual_limit(cost_model, counts[0] + 1, least) if limits.share is None else limits.share
    if least > share * (1 + _TINY):
        raise DniFxError(
            f"the synthesizers of {counts[0]} cut{'s' * (counts[0] > 1)} take {100 * least:.3g} % of a step at least, "
            f"more than the {100 * share:.3g} % that they may"
        )
    if limits.budget is not None:
        share = math.inf if limits.share is None else limits.share  # memory comes first
        memory = _places(cost_model, candidates, replace(limits, objective="memory"))
        memory = replace(memory, charges=np.zeros_like(memory.charges))
        found = _fewest(places, memory, counts, share, limits.budget, inside)
        return found, [], found.share
    if inside is not None:
        choices = [choice for cuts in counts if (choice := _least(places, cuts, share)) is not None]
        found, *others = inside.lightest(choices, limits.objective)
        return found, others[:2], share
    weighed = _weigh(places, counts, share)
    found = min(weighed, key=lambda choice: choice.value)
    # If the share binds, a plan with another number of cuts may be better than all plans that were found.
    bounds = [choice.bound for choice in weighed]
    if segments is None and len(candidates) > MOST_CUTS:
        # A plan with more cuts costs at least their charges and the load of one segment.
        loads_from = cost_model.segment_loads(limits.objective, places.candidates)
        least_load = min(float(loads_from(i).min()) for i in range(len(candidates) + 1))
        bounds.append(least_load + float(np.sort(places.charges + places.static)[: MOST_CUTS + 1].sum()))
    found = replace(found, bound=min(found.value, *bounds))
    return found, _runners_up(places, found, weighed, counts, share), share


def usual_share(cost_model: CostModel, segments: int) -> float:
    """The share of a step that the synthesizers may take, unless the user gives another."""
    return SHARE if cost_model.exits is None else exit_share(segments)


def _usual_limit(cost_model: CostModel, segments: int, least: float) -> float:
    """The share, with room above the least share that is possible; exits need room only if none keeps the share."""
    usual = usual_share(cost_model, segments)
    return usual if cost_model.exits is not None and least <= usual else max(usual, ROOM * least)


@dataclass(frozen=True)
class _Candidates:
    """The candidates, and arrays with one entry for each."""

    cost_model: CostModel
    objective: Objective
    candidates: tuple[Position, ...]
    charges: Numbers
    static: Numbers
    times: Numbers  # of the synthesizers, as shares of backprop's step

    def keep(self, wanted: NDArray[np.bool_]) -> "_Candidates":
        kept = tuple(c for c, w in zip(self.candidates, wanted, strict=True) if w)
        return replace(
            self, candidates=kept, charges=self.charges[wanted], static=self.static[wanted], times=self.times[wanted]
        )


def _places(cost_model: CostModel, candidates: Sequence[Candidate], limits: Limits) -> _Candidates:
    whole = float(cost_model.segment_loads(limits.objective, [])(0)[0])
    step = cost_model.predict([]).step
    costs = [cost_model.cut(c.position) for c in candidates]
    # Exits at early cuts train as well as exits at late ones.
    below = CHARGE_BELOW if cost_model.exits is None else 0.0
    charges = [len(c.position.crossing) * (CHARGE + below * (1 - c.depth)) * whole for c in candidates]
    return _Candidates(
        cost_model,
        limits.objective,
        tuple(c.position for c in candidates),
        np.array(charges),
        np.array([float(c.static + c.gradient) if limits.objective == "memory" else 0.0 for c in costs]),
        np.array([c.time / step if step else 0.0 for c in costs]),
    )


def _uneven(places: _Candidates, speeds: Sequence[float]) -> Choice:
    """The plan with the least sum of its slowest segment and its charges, on machines of these speeds."""
    n, cuts = len(places.candidates) + 1, len(speeds) - 1
    loads_from = places.cost_model.segment_loads(places.objective, places.candidates)
    floor = chain.lightest(loads_from, n, cuts, speeds)[cuts].value
    split = chain.best(loads_from, n, cuts, _with_ends(places.charges), floor, speeds)
    found = _valued(places, [places.candidates[i - 1] for i in split.cuts])
    return replace(found, value=split.value, bound=split.value)


def _weigh(places: _Candidates, counts: Sequence[int], share: float) -> list[Choice]:
    """The best plan for each number of cuts, except numbers whose best plan cannot be the best of all."""
    n = len(places.candidates) + 1
    floors = chain.lightest(places.cost_model.segment_loads(places.objective, places.candidates), n, counts[-1])
    prices = np.cumsum(np.sort(places.charges + places.static))
    weighed: list[Choice] = []
    for cuts in counts:
        bound = floors[cuts].value + float(prices[cuts - 1])
        if all(bound < choice.value for choice in weighed):
            choice = _least(places, cuts, share)
            weighed += [choice] if choice is not None else []
    return weighed


def _least(places: _Candidates, cuts: int, share: float) -> Choice | None:
    """The best plan of exactly so many cuts whose synthesizers take no more than `share`; None: there is none.

    If the share binds, search its Lagrange multiplier: each multiplier yields a bound, and a plan that may keep the
    share.
    """
    sorted_times = np.sort(places.times)
    allowed = share * (1 + _TINY)
    if len(sorted_times) < cuts or sorted_times[:cuts].sum() > allowed:
        return None
    places = places.keep(places.times <= allowed - float(sorted_times[: cuts - 1].sum()) + _TINY)
    n = len(places.candidates) + 1
    floor = chain.lightest(places.cost_model.segment_loads(places.objective, places.candidates), n, cuts)[cuts].value
    found = _relaxed(places, cuts, floor, 0.0)
    if found.share <= allowed:
        return found
    bound, low, high = found.value, 0.0, math.inf
    found = _relaxed(places, cuts, floor, math.inf)
    multiplier = found.value
    for _ in range(_MULTIPLIERS):
        choice = _relaxed(places, cuts, floor, multiplier)
        bound = max(bound, choice.value + multiplier * (choice.share - allowed))
        if choice.share <= allowed:
            found, high = min(found, choice, key=lambda c: c.value), multiplier
        else:
            low = multiplier
        multiplier = 4 * multiplier if math.isinf(high) else (low + high) / 2
    return replace(found, bound=min(bound, found.value))


def _relaxed(places: _Candidates, cuts: int, floor: float, multiplier: float) -> Choice:
    """The best plan if the synthesizers' time costs `multiplier` times its share; infinity: only this share counts."""
    n = len(places.candidates) + 1
    loads_from = places.cost_model.segment_loads(places.objective, places.candidates)
    if math.isinf(multiplier):
        split = chain.cheapest(loads_from, n, cuts, _with_ends(places.times))
    else:
        prices = places.charges + places.static + multiplier * places.times
        split = chain.best(loads_from, n, cuts, _with_ends(prices), floor)
    return _valued(places, [places.candidates[i - 1] for i in split.cuts])


def _valued(places: _Candidates, cuts: Sequence[Position]) -> Choice:
    """The value of a plan with these cuts."""
    chosen = [places.candidates.index(cut) for cut in cuts]
    charges = float(places.charges[chosen].sum())
    loads_from = places.cost_model.segment_loads(places.objective, cuts)
    heaviest = chain.heaviest(loads_from, len(chosen) + 1, range(1, len(chosen) + 1))
    value = heaviest + charges + float(places.static[chosen].sum())
    return Choice(tuple(cuts), value, charges, value, float(places.times[chosen].sum()))


def _with_ends(prices: Numbers) -> Numbers:
    """Add a price of 0 for the first and the last place, which are no cuts."""
    return np.concatenate([[0.0], prices, [0.0]])


def _runners_up(
    places: _Candidates, found: Choice, weighed: Sequence[Choice], counts: Sequence[int], share: float
) -> list[Choice]:
    """The best plan with one cut more, and with one fewer; the second best with as many; the best above the share."""
    count = len(found.cuts)
    others = [choice for choice in weighed if abs(len(choice.cuts) - count) == 1]
    without = [places.keep(np.array([c != cut for c in places.candidates])) for cut in found.cuts]
    second = [choice for choice in (_least(rest, count, share) for rest in without) if choice is not None]
    others += sorted(second, key=lambda c: c.value)[:1]
    dearer = [c for c in _weigh(places, counts, math.inf) if c.share > share * (1 + _TINY) and c.value < found.value]
    others += sorted(dearer, key=lambda c: c.value)[:1]
    return sorted(others, key=lambda c: c.value)


def _fewest(
    places: _Candidates,
    memory: _Candidates,
    counts: Sequence[int],
    share: float,
    budget: int,
    inside: Recomputing | None,
) -> Choice:
    """The plan with the fewest cuts that fits into the budget: the best plan, or else the plan with the least memory.

    Where segments may compute their activations again, the plan with the least time of a step.

    Args:
        memory: The same places; their value counts memory only.
    """
    cost_model = places.cost_model
    least = math.inf
    choices: list[Choice] = []
    for cuts in counts:
        best, smallest = _least(places, cuts, share), _least(memory, cuts, share)
        if best is None or smallest is None:
            continue
        smallest = replace(_valued(places, smallest.cuts), bound=best.bound)
        if inside is not None:
            choices += [best, smallest]
            continue
        peaks = [cost_model.predict(choice.cuts).peak for choice in (best, smallest)]
        if min(peaks) <= budget:
            return best if peaks[0] <= budget else smallest
        least = min(least, *peaks)
    if inside is not None and choices:
        found, least = inside.fastest(choices, budget)
        if found is not None:
            return found
    raise NoLegalCutError(
        f"no plan of up to {counts[-1] + 1} segments was found that fits into {bytes_text(budget)}: the least "
        f"predicted peak is {bytes_text(least)}, {bytes_text(cost_model.resident)} of it parameters, optimizer state, "
        "batch" + (f"; synthesizers were held to {100 * share:.3g} % of a step" if math.isfinite(share) else "")
    )
