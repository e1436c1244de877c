"""Pipelines of 4 to 1,024 stages, computed from the times of one stage that benchmarks/pipeline.py has measured.

Run:  python benchmarks/pipeline_simulation.py    minutes; writes benchmarks/results/pipeline_simulation.md

All stages are alike. GPipe, 1F1B and ZBV run in the order of their papers: a computation begins when the one before it
on its rank has ended, and its input is there. The time of a step is the longest time of a rank from its first
computation to its last, as in the paper on ZBV. For ZBV, the forward pass and both halves of the backward pass take
the same time, as its paper assumes. PipeDream-2BW and the decoupled schedule run without a flush: the time of a step is
that of their steady state. The optimizer's step is left out, and no link has a limit of bandwidth.
"""

import argparse
import itertools
import statistics
import sys
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import runs
from pipeline_report import MICROBATCH, Case, plain

RESULTS = Path(__file__).parent / "results" / "pipeline_simulation.md"
MEASURED = RESULTS.with_name("pipeline.jsonl")
STAGES = (4, 16, 64, 256, 1024)
MILLISECONDS = (0, 5, 20)


@dataclass(frozen=True)
class Times:
    """Seconds of a rank for one micro-batch: forward, backward, and from a send to its arrival."""

    forward: float
    backward: float
    link: float = 0.0


@dataclass(frozen=True)
class Step:
    """Seconds of a step, and the part of them in which a rank does not compute."""

    seconds: float
    bubble: float


class Computation(NamedTuple):
    kind: str  # "F" forward; "B" backward, to the inputs alone if "W" is apart; "W" backward to the weights
    stage: int
    microbatch: int


def gpipe(p: int, m: int, times: Times) -> Step:
    orders = [gpipe_order(m, rank) for rank in range(p)]
    return _in_order(orders, [*range(p)], m, {"F": times.forward, "B": times.backward}, times.link)


def one_f_one_b(p: int, m: int, times: Times) -> Step:
    orders = [one_f_one_b_order(p, m, rank) for rank in range(p)]
    return _in_order(orders, [*range(p)], m, {"F": times.forward, "B": times.backward}, times.link)


def zbv(p: int, m: int, times: Times) -> Step:
    third = (times.forward + times.backward) / 6  # a rank has two stages
    place = [*range(p), *reversed(range(p))]
    return _in_order([zbv_order(p, m, rank) for rank in range(p)], place, m, dict.fromkeys("FBW", third), times.link)


def two_buffered_weights(p: int, m: int, times: Times) -> Step | None:
    """PipeDream-2BW. None: two versions of the weights are enough from p micro-batches on.

    Rank 0 has p micro-batches under way; in the time of one round trip it completes all of them.
    """
    if m < p:
        return None
    work = times.forward + times.backward
    seconds = work + 2 * (p - 1) / p * times.link
    return Step(m * seconds, 1 - work / seconds)


def decoupled(m: int, times: Times, share: float) -> Step:
    """Nothing comes back from the rank above; the exits add a share to what a rank computes."""
    return Step(m * (times.forward + times.backward) * (1 + share), 0.0)


def gpipe_order(m: int, rank: int) -> Iterator[Computation]:
    for kind, i in itertools.product("FB", range(m)):
        yield Computation(kind, rank, i)


def one_f_one_b_order(p: int, m: int, rank: int) -> Iterator[Computation]:
    ahead = min(m, p - rank)
    for i in range(ahead):
        yield Computation("F", rank, i)
    for i in range(m):
        yield Computation("B", rank, i)
        if ahead + i < m:
            yield Computation("F", rank, ahead + i)


def zbv_order(p: int, m: int, rank: int) -> Iterator[Computation]:
    """Qi et al. 2024, "Zero Bubble Pipeline Parallelism", section 6.

    Made for 2 p - 1 micro-batches at least; those that are not there are left out, as in torch.
    """
    for stage, kind, i in _zbv_order(p, max(m, 2 * p - 1), rank):
        if i < m:
            yield Computation(kind, stage, i)


def _zbv_order(p: int, m: int, rank: int) -> Iterator[tuple[int, str, int]]:
    low, high = rank, 2 * p - 1 - rank  # the rank's stages on the way down the V, and up
    done = dict.fromkeys(itertools.product((low, high), "FBW"), 0)

    def next_of(stage: int, kinds: str) -> Iterator[tuple[int, str, int]]:
        for kind in kinds:
            yield stage, kind, done[stage, kind]
            done[stage, kind] += 1

    yield from next_of(low, "F" * (2 * (p - rank) - 1))
    for _ in range(rank):
        yield from next_of(high, "F")
        yield from next_of(low, "F")
    for _ in range(p - rank):
        yield from next_of(high, "FBW")
    while done[high, "F"] < m:
        if done[low, "F"] < m:
            yield from next_of(low, "F")
        yield from next_of(low, "BW")
        yield from next_of(high, "FBW")
    for _ in range(rank):
        yield from next_of(low, "B")
        yield from next_of(high, "B")
    for _ in range(p - rank):
        yield from next_of(low, "BW")
    for stage in (high, low):
        yield from next_of(stage, "W" * (m - done[stage, "W"]))


def _in_order(
    orders: Sequence[Iterator[Computation]], place: Sequence[int], m: int, seconds: dict[str, float], link: float
) -> Step:
    """Run the orders of all ranks; `place` has the rank of each stage."""
    ends = {kind: [array("d", [-1.0]) * m for _ in place] for kind in "FBW"}  # -1: not yet

    def ready(one: Computation) -> float:
        """When its input is on its rank; -1: not known yet."""
        kind, stage, i = one
        if kind == "W" or (kind == "F" and stage == 0):
            return 0.0
        if kind == "B" and stage == len(place) - 1:
            return ends["F"][stage][i]
        source = stage - 1 if kind == "F" else stage + 1
        end = ends[kind][source][i]
        return end + link if end >= 0 and place[source] != place[stage] else end

    upcoming = [next(order, None) for order in orders]
    starts: list[float | None] = [None] * len(orders)
    clocks, work = [0.0] * len(orders), [0.0] * len(orders)
    runnable = deque(range(len(orders)))
    while runnable:
        rank = runnable.popleft()
        while (one := upcoming[rank]) is not None and (there := ready(one)) >= 0:
            start = max(clocks[rank], there)
            starts[rank] = start if starts[rank] is None else starts[rank]
            clocks[rank] = ends[one.kind][one.stage][one.microbatch] = start + seconds[one.kind]
            work[rank] += seconds[one.kind]
            upcoming[rank] = next(orders[rank], None)
            reached = one.stage + {"F": 1, "B": -1, "W": 0}[one.kind]
            if 0 <= reached < len(place) and place[reached] != rank:
                runnable.append(place[reached])
    assert not any(upcoming), "the ranks wait for each other"
    span = max(end - start for start, end in zip(starts, clocks, strict=True) if start is not None)
    return Step(span, 1 - max(work) / span)


def measured() -> Times:
    """Of one stage of two, in GPipe on a free link, with the most micro-batches."""
    cases = {case: record for case, record in runs.done(MEASURED, Case) if plain(case) and case.ranks == 2}
    if not cases:
        sys.exit(f"{MEASURED} has no run with two stages: run benchmarks/pipeline.py first")
    case = max(cases, key=lambda case: case.microbatches)
    computing = cases[case]["ways"]["GPipe"]["computing"]
    return Times(*(statistics.mean(computing[kind]) / case.microbatches for kind in ("forward", "backward")))


def report(arguments: argparse.Namespace) -> Iterator[str]:
    times, share = measured(), arguments.exits / 100
    yield "# Pipelines of many stages, simulated\n"
    yield f"`python benchmarks/pipeline_simulation.py --exits {arguments.exits}`, from the times of a stage in"
    yield f"[pipeline.jsonl](pipeline.jsonl): forward {times.forward * 1e3:.1f} ms, backward {times.backward * 1e3:.1f}"
    yield f"ms for {MICROBATCH} samples. The exits of the decoupled schedule add {arguments.exits} % to that. Samples a"
    yield "second (bubble); -: two versions of the weights are not enough for so few micro-batches.\n"
    ways: dict[str, Callable[[int, int, Times], Step | None]] = {
        "GPipe": gpipe,
        "1F1B": one_f_one_b,
        "ZBV": zbv,
        "PipeDream-2BW": two_buffered_weights,
        "decoupled": lambda p, m, times: decoupled(m, times, share),
    }
    for milliseconds in MILLISECONDS:
        own = Times(times.forward, times.backward, milliseconds / 1e3)
        yield f"## A link with {milliseconds} ms\n"
        yield "| stages | micro-batches | " + " | ".join(ways) + " |"
        yield "|---|---|" + "---|" * len(ways)
        for p in STAGES:
            for m in (64, 2 * p):
                steps = [way(p, m, own) for way in ways.values()]
                cells = [
                    "-" if one is None else f"{m * MICROBATCH / one.seconds:,.0f} ({one.bubble:.0%})" for one in steps
                ]
                yield f"| {p:,} | {m:,} | " + " | ".join(cells) + " |"
        yield ""


if __name__ == "__main__":
    runs.measure(__doc__, RESULTS, report, exits=5)
