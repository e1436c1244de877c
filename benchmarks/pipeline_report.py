"""The report of benchmarks/pipeline.py."""

import os
import platform
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import runs

MICROBATCH = 256  # samples
Result = dict[str, Any]
Ways = dict[str, Result]
OURS = ("decoupled, exits", "decoupled, shared head", "decoupled, linear")  # without sync
LINKS = [(milliseconds, megabytes) for milliseconds in (0, 5, 20) for megabytes in (0, 100, 10)]
TCP_LINKS = (5, 20)  # milliseconds
STAGES = ["lower 30 % larger", "upper 30 % larger", "last at half speed"]


@dataclass(frozen=True)
class Case:
    """One set of turns; all ways take part."""

    ranks: int
    microbatches: int
    width: int
    milliseconds: int = 0  # latency of the link
    megabytes: int = 0  # a second, bandwidth of the link; 0: no limit
    stages: str = "even"


def report(path: Path, tcp: bool = False) -> Iterator[str]:
    found = dict(runs.done(path, Case))
    torch_version = next(iter(found.values()))["torch"]
    title, option = (" on TCP links with latency", " --tcp") if tcp else ("", "")
    yield f"# Training in a pipeline of processes{title}\n"
    yield f"`python benchmarks/pipeline.py{option}`; torch {torch_version}, gloo, {platform.machine()},"
    yield f"{os.cpu_count()} cores, one thread a process. 12 pre-norm residual MLP blocks and a head,"
    yield f"micro-batches of {MICROBATCH} samples, SGD with momentum, whose step is in every time."
    yield "`one process` is the whole net in one process."
    yield "Samples a second: median of turns. Ratio: seconds beside GPipe's of the same turn, median (10th to 90th"
    yield "percentile). Bubble: the part of the time in which the busiest rank does not compute. Lost: the"
    yield "part of the time of all ranks in which they do not compute, or compute exits and synthesizers. MB sent in a"
    yield "step: up (to a higher rank) and down. Memory: the most MB of live tensors on a rank.\n"
    nets = {(case.ranks, case.width) for case in found}
    for ranks, width in sorted(nets, key=lambda net: (net[0], -net[1])):  # wide first
        own = {case: record["ways"] for case, record in found.items() if (case.ranks, case.width) == (ranks, width)}
        yield f"## {ranks} processes, width {width}\n"
        if ranks > (os.cpu_count() or 1):
            yield "There are more processes than cores: waits for a core count as computing.\n"
        even = {case: ways for case, ways in own.items() if plain(case)}
        if even:
            yield from table_of_microbatches(even)
        for latency in TCP_LINKS if tcp else LINKS[-1][:1]:
            slow = {case: ways for case, ways in own.items() if (case.milliseconds, case.megabytes) == (latency, 0)}
            if len(slow) > 1:
                yield f"### A link with {latency} ms: samples a second (bubble)\n"
                by_microbatches = dict(sorted(slow.items(), key=lambda item: item[0].microbatches))
                yield from table_of_cases(by_microbatches, lambda case: f"{case.microbatches} micro-batches")
        if tcp:
            continue
        m = Counter(case.microbatches for case in own if not plain(case)).most_common(1)[0][0]
        delayed = {case: ways for case, ways in own.items() if case.stages == "even" and case.microbatches == m}
        if len(delayed) > 1:
            yield f"### A link with latency and bandwidth, {m} micro-batches: samples a second (bubble)\n"
            yield from table_of_cases(dict(sorted(delayed.items(), key=lambda item: link_of(item[0]))), link_name)
        uneven = {case: ways for case, ways in own.items() if free(case) and case.microbatches == m}
        if len(uneven) > 1:
            yield f"### Uneven stages, {m} micro-batches: samples a second (bubble)\n"
            yield from table_of_cases(uneven, lambda case: case.stages)


def free(case: Case) -> bool:
    return not case.milliseconds and not case.megabytes


def plain(case: Case) -> bool:
    return free(case) and case.stages == "even"


def link_of(case: Case) -> tuple[int, float]:
    """For sorting: slower links last."""
    return case.milliseconds, 1 / case.megabytes if case.megabytes else 0


def link_name(case: Case) -> str:
    return f"{case.milliseconds} ms, " + (f"{case.megabytes} MB/s" if case.megabytes else "no limit")


def speed(case: Case, result: Result) -> str:
    """Samples a second."""
    return f"{MICROBATCH * case.microbatches / statistics.median(result['seconds']):,.0f}"


def table_of_microbatches(found: dict[Case, Ways]) -> Iterator[str]:
    yield "| micro-batches | way | samples/s | ratio to GPipe | bubble | lost | MB up | MB down | MB on a rank |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for case in sorted(found, key=lambda case: case.microbatches):
        for way, result in found[case].items():
            if "refused" in result:
                yield f"| {case.microbatches} | {way} | - | - | - | - | - | - | - |"
                continue
            ratio = runs.ratio(result["seconds"], found[case]["GPipe"]["seconds"])
            megabytes = (result[key] / 1e6 for key in ("up", "down"))
            shares = (f"{result[key]:.0%}" for key in ("bubble", "lost"))
            sizes = (*(f"{mb:.2f}" for mb in megabytes), f"{max(result['peaks']) / 1e6:.0f}")
            cells = (str(case.microbatches), way, speed(case, result), ratio, *shares, *sizes)
            yield f"| {' | '.join(cells)} |"
    yield ""
    yield from refusals(found)


def lead(ways: Ways) -> str:
    """The samples a second of the best decoupled way without sync, as a multiple of those of the best other pipeline.

    Per round, the ratio of the best of each; then the median, 10th and 90th percentile.
    """
    own = [result["seconds"] for way, result in ways.items() if way in OURS]
    rivals = [
        result["seconds"]
        for way, result in ways.items()
        if way not in OURS and way not in ("one process", "decoupled, linear, sync") and "refused" not in result
    ]
    best, other = min(own, key=statistics.median), min(rivals, key=statistics.median)
    return runs.ratio(other, best)


def table_of_cases(found: dict[Case, Ways], name: Callable[[Case], str]) -> Iterator[str]:
    yield "| way | " + " | ".join(map(name, found)) + " |"
    yield "|---|" + "---|" * len(found)
    for way in next(iter(found.values())):
        cells = [
            "-" if "refused" in ways[way] else f"{speed(case, ways[way])} ({ways[way]['bubble']:.0%})"
            for case, ways in found.items()
        ]
        yield f"| {way} | " + " | ".join(cells) + " |"
    yield "| the best decoupled, async, beside the best other | " + " | ".join(map(lead, found.values())) + " |"
    yield ""
    yield from refusals(found)


def refusals(found: dict[Case, Ways]) -> Iterator[str]:
    """Why a way has no numbers."""
    reasons = {
        f"- {way}, {case.microbatches} micro-batches a step: {result['refused']}"
        for case, ways in found.items()
        for way, result in ways.items()
        if "refused" in result
    }
    if reasons:
        yield "Refused:\n"
        yield from sorted(reasons)
        yield ""
