"""From `cuts=` to positions in the graph: those that the user asks for, or the best ones."""

from collections.abc import Sequence, Set

from torch import fx

from dni_fx.cost import WORST_RANK, CostModel
from dni_fx.cuts.asked import (
    after_every,
    after_layers,
    last_nodes,
    positions_after,
    positions_of_marks,
    positions_of_plan,
    separated,
)
from dni_fx.cuts.inside import Recomputing, pieces_of_plan
from dni_fx.cuts.plan import Decision, outlook_of
from dni_fx.cuts.search import ROOM, Choice, Limits, best_cuts, usual_share
from dni_fx.errors import DniFxError
from dni_fx.partition import MOST_CANDIDATES, Candidate, Position, find_candidates, find_positions
from dni_fx.plans import Plan, Verdict, Weighed
from dni_fx.units import bytes_text

__all__ = ["Cuts", "decide"]

Cuts = str | int | Sequence[str] | Plan

_AGAIN = "activations again"


def decide(
    graph: fx.Graph,
    cost_model: CostModel,
    cuts: Cuts,
    limits: Limits,
    preferred: Set[str] = frozenset(),
    inside: Recomputing | None = None,
) -> Decision:
    """Decide where to cut.

    Args:
        cost_model: The costs of any cuts of the graph.
        limits: For "auto" and a number of segments.
        preferred: For these, too: cut only after these nodes, if one of them is legal.
        inside: Segments compute their activations again: all, or with a memory budget as many as have to.

    Raises:
        DniFxError: If a name in `cuts` does not exist or cannot be cut after, or no plan keeps the limits.
        NoLegalCutError: If the model has no legal cut, or no cuts keep the memory budget.
    """
    is_automatic = cuts == "auto" or (isinstance(cuts, int) and cuts >= 2)  # True and False are numbers, too
    if is_automatic:
        decision = _automatic(cost_model, cuts if isinstance(cuts, int) else None, limits, preferred, inside)
    else:
        decision = _asked(graph, cost_model, cuts, limits)
    refusals = [refusal for cut in decision.cuts if (refusal := cost_model.refusal(cut))]
    if refusals:
        raise DniFxError(refusals[0])
    if inside is not None and not is_automatic and not decision.pieces:
        decision = decision._replace(pieces=inside.pieces(decision.cuts))
    again = "" if inside is None or _AGAIN in decision.why else _again(decision)  # a saved plan says so
    return decision._replace(why=decision.why + again)


def _again(decision: Decision) -> str:
    """The segments that compute their activations again, in words."""
    numbers = [str(k) for k, pieces in enumerate(decision.pieces) if pieces]
    if not numbers:
        return f"; no segment has to compute its {_AGAIN}, or would get lighter by it"
    some = f"segment{'s' * (len(numbers) > 1)} {', '.join(numbers)}"
    return f"; {'all' if len(numbers) > len(decision.cuts) else some} compute their {_AGAIN}"


def _asked(graph: fx.Graph, cost_model: CostModel, cuts: Cuts, limits: Limits) -> Decision:
    """The cuts that the user asks for."""
    flow = cost_model.flow
    if isinstance(cuts, int):
        raise DniFxError(f"cuts={cuts!r}: a number of segments is 2 or more")
    if limits != Limits():
        raise DniFxError(
            "objective, memory budget, synthesizer share and speeds are for cuts='auto' or a number of segments"
        )
    if isinstance(cuts, Plan):
        places = positions_of_plan(flow, cuts)
        why = f"a saved plan: {cuts.why.removeprefix('a saved plan: ')}"
        return Decision(places, why, pieces=pieces_of_plan(flow, cuts))
    if cuts == "marked":
        return Decision(positions_of_marks(graph, flow), "after the blocks under dni_fx.cut_after()")
    if isinstance(cuts, str) and cuts.startswith("every:"):
        return after_every(graph, flow, cuts.removeprefix("every:"), cost_model.refusal)
    if cuts == "leaves":
        return after_layers(graph, flow, cost_model.refusal)
    names = [cuts] if isinstance(cuts, str) else cuts
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise DniFxError(
            f"cuts={cuts!r} is not 'auto', a number of segments, names of modules or nodes, 'every:Class', "
            "'leaves', 'marked' or a Plan"
        )
    if not names:
        raise DniFxError("no cuts given: name a module or node to cut after, or give cuts='auto'")
    positions, calls = find_positions(flow), last_nodes(graph)
    chosen = {p.index: p for name in names for p in positions_after(flow, positions, calls, name)}
    return Decision(separated(flow, [chosen[i] for i in sorted(chosen)]), f"after {', '.join(names)}, as asked for")


def _automatic(
    cost_model: CostModel, segments: int | None, limits: Limits, preferred: Set[str], inside: Recomputing | None
) -> Decision:
    candidates = _candidates(cost_model, segments, limits, preferred)
    if not candidates:
        legal = [p for p in find_positions(cost_model.flow) if not p.obstacle]
        raise DniFxError(cost_model.refusal(legal[0]))
    if segments is not None and segments > len(candidates) + 1 and limits.budget is None:
        raise DniFxError(f"cannot make {segments} segments: the model has legal cuts for {len(candidates) + 1} at most")
    if limits.speeds is not None and len(limits.speeds) != segments:
        raise DniFxError(
            f"speeds= has {len(limits.speeds)} numbers: give cuts={len(limits.speeds)}, a segment for each"
        )
    found, others, share = best_cuts(cost_model, candidates, segments, limits, inside)
    verdict = Verdict(
        objective=limits.objective,
        places=len(candidates),
        bound=found.bound,
        share=share,
        weighed=tuple(_weighed(cost_model, choice) for choice in (found, *others)),
    )
    asked = "auto" if segments is None else f"{segments} segments asked for"
    if limits.budget is not None:
        what = "fewest segments" if inside is None else "fastest plan"
        asked += f", the {what} that fit{'s' * (inside is not None)} into {bytes_text(limits.budget)}"
    if limits.speeds is not None:
        asked += f" for machines of the speeds {', '.join(f'{speed:g}' for speed in limits.speeds)}"
    proof = "optimal" if inside is None else "the best plan that was weighed"
    if inside is None and not verdict.optimal:
        gap = f"{100 * (found.value / found.bound - 1):.2g} %" if found.bound > 0 else "an unknown share"
        proof = f"within {gap} of the best there can be"
    why = f"{asked}: {proof} for {limits.objective} and charges, among {len(candidates)} places"
    if limits.share is None and found.share > usual_share(cost_model, len(found.cuts) + 1):
        why += f"; the synthesizers take {100 * found.share:.2g} % of backprop's step"
    return Decision(found.cuts, why, verdict, pieces=found.pieces)


def _candidates(cost_model: CostModel, segments: int | None, limits: Limits, preferred: Set[str]) -> list[Candidate]:
    """The places up to the best rank that has enough of them: with exits, if one has, enough that keep about the share.

    Exits that take some more time than they should are better than exits that do not train well.
    """
    most = max(MOST_CANDIDATES, 4 * (segments or 0))
    cuts = (segments or 2) - 1
    share = ROOM * usual_share(cost_model, cuts + 1) if limits.share is None else limits.share

    def up_to(rank: int) -> list[Candidate]:
        def fits(position: Position) -> bool:
            return not cost_model.refusal(position) and cost_model.rank(position) <= rank

        return find_candidates(cost_model.flow, preferred, most, fits)

    enough: list[Candidate] = []
    for rank in range(WORST_RANK):
        found = up_to(rank)
        if len(found) < cuts:
            continue
        enough = found
        least = sum(sorted(cost_model.share([candidate.position]) for candidate in found)[:cuts])
        if cost_model.exits is None or limits.budget is not None or least <= share:
            break
    return enough or up_to(WORST_RANK)


def _weighed(cost_model: CostModel, choice: Choice) -> Weighed:
    names = tuple(p.after for p in choice.cuts)
    count = sum(len(p.crossing) for p in choice.cuts)
    outlook = outlook_of(cost_model.predict(choice.cuts, choice.pieces))
    return Weighed(names, count, choice.value, choice.charges, choice.share, outlook)
