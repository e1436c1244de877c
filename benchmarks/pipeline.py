"""Training in a pipeline of processes: samples a second, bubble, bytes sent and memory of each way.

Run:  python benchmarks/pipeline.py            writes benchmarks/results/pipeline.jsonl and .md; hours; can be stopped
      python benchmarks/pipeline.py --quick    a narrow net and few cases, under a minute; writes no file
      python benchmarks/pipeline.py --tcp      the slow links are TCP; writes pipeline_tcp.jsonl and .md; Linux, as root

Each rank is a process with one thread. All ways of a case are in one set of processes and take turns, so that a slow
moment slows all alike. A turn has eight micro-batches, of the narrow net 32, in as many steps, and one step at least.
Before, the first update of each exact way is compared with that of one process. After, a further step of a case with
even stages and a free link counts the live bytes of each rank.

The bubble is 1 - (the seconds that the busiest rank computes) / (the seconds of the turn). Computing is the forward and
backward passes, the loss and the optimizer's step. Lost time is the part of the time of all ranks in which they do not
compute, or compute exits and synthesizers; in sync, the gradients of synthesizers' weights still count as computing.
Bytes sent go up (to a higher rank) or down, summed over the ranks. Memory is the peak of live tensors on the rank with
the most: weights, their other versions, the optimizer's state, gradients, activations.

pipeline_net.py has the net and what a way is, pipeline_rivals.py and pipeline_decoupled.py the ways, pipeline_links.py
the links, a delay in what sends, and pipeline_tcp.py those of TCP.
"""

import argparse
import copy
import dataclasses
import datetime
import itertools
import json
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pipeline_links
import pipeline_net
import pipeline_report
import pipeline_tcp
import runs
import torch
import torch.distributed as dist
from pipeline_decoupled import DECOUPLED, Decoupled
from pipeline_net import Clock, Setting, Trainee
from pipeline_report import MICROBATCH, Case
from pipeline_rivals import RIVALS
from torch import nn

from dni_fx.bench.live_bytes import training_peak

RUNS = Path(__file__).parent / "results" / "pipeline.jsonl"
TCP_RUNS = RUNS.with_name("pipeline_tcp.jsonl")
TIMEOUT = datetime.timedelta(seconds=60)
BLOCKS = 12
WIDTH, NARROW = 256, 64  # of the net
Result = dict[str, Any]


def cases(ranks: int, arguments: argparse.Namespace) -> Iterator[Case]:
    """All numbers of micro-batches on a free and on a slow link; other links and uneven stages with one of them.

    A narrow net on the slow link: how far the latency counts depends on how long a micro-batch takes.
    """
    base = Case(ranks, arguments.middle, arguments.width)
    if arguments.tcp:
        tcp = [(WIDTH, milliseconds) for milliseconds in pipeline_report.TCP_LINKS]
        tcp.append((NARROW, pipeline_report.TCP_LINKS[-1]))
        for (width, milliseconds), m in itertools.product(tcp, arguments.microbatches):
            yield dataclasses.replace(base, width=width, milliseconds=milliseconds, microbatches=m)
        return
    for m in arguments.microbatches:
        yield dataclasses.replace(base, microbatches=m)
        if not arguments.quick:
            slow = dataclasses.replace(base, microbatches=m, milliseconds=pipeline_report.LINKS[-1][0])
            yield from (slow, dataclasses.replace(slow, width=NARROW))
    first = -1 if arguments.quick else 0
    for milliseconds, megabytes in pipeline_report.LINKS[first:]:
        yield dataclasses.replace(base, milliseconds=milliseconds, megabytes=megabytes)
    for stages in pipeline_report.STAGES[first:]:
        yield dataclasses.replace(base, stages=stages)


def blocks_of(case: Case) -> tuple[int, ...]:
    """The blocks of each rank: 30 % more on one side than equal parts, and 30 % less on the other."""
    tilt = {"lower 30 % larger": 0.3, "upper 30 % larger": -0.3}.get(case.stages, 0)
    last = case.ranks - 1
    return tuple(round(BLOCKS / case.ranks * (1 + tilt * (1 - 2 * rank / last))) for rank in range(case.ranks))


# A further way is one more entry: a function of a net of its own, which all ranks have alike, and a setting.
WAYS: dict[str, Callable[[nn.Sequential, Setting], Trainee]] = RIVALS | DECOUPLED


def make(way: str, net: nn.Sequential, setting: Setting) -> Trainee:
    """What trains this rank's part of a net in a way.

    Raises:
        ValueError: If the way refuses the number of micro-batches.
    """
    return WAYS[way](copy.deepcopy(net), setting)


@dataclasses.dataclass(frozen=True)
class Together:
    """What the processes of a pipeline share; they are forked.

    Attributes:
        network: Its link is slow, where that is TCP.
        wait: Until all are here; it takes no time on a link.
    """

    network: pipeline_tcp.Network | None
    wait: Callable[[], object]


class Bench:
    """One rank's ways in a case."""

    def __init__(self, case: Case, links: pipeline_links.Links, together: Together) -> None:
        self.case, self.links, self.wait = case, links, together.wait
        self.slow = together.network or links
        self.clock = Clock()
        torch.manual_seed(0)
        self.net = pipeline_net.network(case.width, BLOCKS)
        samples = case.microbatches * MICROBATCH
        self.x, self.target = torch.randn(samples, case.width), torch.randint(0, pipeline_net.CLASSES, (samples,))
        self.groups: list[dist.ProcessGroup] = []
        self.trainees: dict[str, Trainee] = {}
        self.refused: dict[str, str] = {}
        for way in WAYS:
            group = dist.new_group(timeout=TIMEOUT)
            setting = Setting(blocks_of(case), case.microbatches, group, self.clock)
            self.groups.append(group)
            try:
                self.trainees[way] = make(way, self.net, setting)
            except ValueError as error:
                self.refused[way] = " ".join(str(error).split())

    def check(self) -> None:
        """Compare the first update with that of one process."""
        alone = pipeline_net.network(self.case.width, BLOCKS)
        alone.load_state_dict(self.net.state_dict())
        optimizer = pipeline_net.optimizer_for([*alone.parameters()])
        m = self.case.microbatches  # a whole batch at once would need much memory
        for x, target in zip(self.x.chunk(m), self.target.chunk(m), strict=True):
            (pipeline_net.loss_of(alone(x), target) / m).backward()
        optimizer.step()
        wanted = dict(alone.named_parameters())
        for way, trainee in self.trainees.items():
            trainee.step(self.x, self.target)
            trainee.finish()
            for name, weight, gradient in trainee.state() if trainee.exact else ():
                own = wanted[name]
                for kind, found, right in (("gradient", gradient, own.grad), ("weight", weight, own)):
                    torch.testing.assert_close(
                        found, right, rtol=0, atol=1e-5, msg=f"{way}: the {kind} of {name} is not one process's"
                    )

    def turn(self, trainee: Trainee, steps: int) -> Result:
        """Train for some steps: the numbers of this rank."""
        self.wait()
        self.clock.seconds.clear()
        self.links.sent.clear()
        start = time.perf_counter()
        for _ in range(steps):
            trainee.step(self.x, self.target)
        self.wait()
        seconds = (time.perf_counter() - start) / steps
        sent = {"up": 0.0, "down": 0.0}
        for rank, size in self.links.sent.items():
            sent["up" if rank > dist.get_rank() else "down"] += size / steps
        computing = {kind: s / steps for kind, s in self.clock.seconds.items()}
        return {"seconds": seconds, "computing": computing} | sent

    def peak(self, trainee: Trainee) -> int:
        """The most bytes alive on this rank in a step that begins and ends with nothing under way."""

        def step() -> None:
            trainee.step(self.x, self.target)
            trainee.finish()

        trainee.finish()
        measured = training_peak(step)
        return measured.peak + measured.outside

    def run(self, rounds: int, microbatches: int) -> dict[str, Result]:
        """What all ranks found, by way.

        Args:
            microbatches: In a turn.
        """
        steps = max(1, microbatches // self.case.microbatches)
        self.check()
        self.clock.half_speed = self.case.stages == "last at half speed" and dist.get_rank() == self.case.ranks - 1
        self.slow.link = pipeline_links.Link(self.case.milliseconds / 1e3, self.case.megabytes * 1e6 or math.inf)
        for trainee in self.trainees.values():  # once without being counted
            self.turn(trainee, 1)
        turns: dict[str, list[Result]] = {way: [] for way in self.trainees}
        for _ in range(rounds):
            for way, trainee in self.trainees.items():
                turns[way].append(self.turn(trainee, steps))
        for trainee in self.trainees.values():
            trainee.finish()
        self.clock.half_speed = False
        measured = self.trainees if pipeline_report.plain(self.case) else {}
        peaks = {way: self.peak(trainee) for way, trainee in measured.items()}
        everywhere: list[Any] = [None] * self.case.ranks
        dist.all_gather_object(everywhere, (turns, peaks))
        found: dict[str, Result] = {}
        for way in WAYS:
            if way in self.refused:
                found[way] = {"refused": self.refused[way]}
            else:
                found[way] = joined([own_turns[way] for own_turns, _ in everywhere])
                if peaks:
                    found[way]["peaks"] = [own_peaks[way] for _, own_peaks in everywhere]
        return found

    def close(self) -> None:
        for trainee in self.trainees.values():
            if isinstance(trainee, Decoupled):
                trainee.close()
        self.links.stop()
        self.slow.link = pipeline_links.Link()
        dist.barrier()
        for group in self.groups:
            dist.destroy_process_group(group)


def joined(ranks: Sequence[Sequence[Result]]) -> Result:
    """The numbers of all ranks' turns: seconds of each, and medians."""
    seconds = [turn["seconds"] for turn in ranks[0]]
    computing = [[turn["computing"] for turn in turns] for turns in zip(*ranks, strict=True)]  # by turn and rank
    busiest = [max(sum(kinds.values()) for kinds in turn) for turn in computing]
    useful = [statistics.mean(sum(kinds.values()) - kinds.get(pipeline_net.HEADS, 0) for kinds in t) for t in computing]
    kinds = {kind for own in ranks for turn in own for kind in turn["computing"]}
    return {
        "seconds": seconds,
        "bubble": statistics.median(1 - busy / wall for busy, wall in zip(busiest, seconds, strict=True)),
        "lost": statistics.median(1 - use / wall for use, wall in zip(useful, seconds, strict=True)),
        "computing": {  # of each rank
            kind: [statistics.median(turn["computing"].get(kind, 0.0) for turn in own) for own in ranks]
            for kind in sorted(kinds)
        },
        "up": sum(own[0]["up"] for own in ranks),
        "down": sum(own[0]["down"] for own in ranks),
    }


def process(
    rank: int, folder: str, path: Path, todo: Sequence[Case], arguments: argparse.Namespace, together: Together
) -> None:
    """One rank: all cases with this number of ranks. Rank 0 adds a line to the file for each."""
    torch.set_num_threads(1)
    if together.network is not None:
        together.network.enter(rank)
    store = f"file://{folder}/store{todo[0].ranks}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=todo[0].ranks, timeout=TIMEOUT)
    links = pipeline_links.Links()
    links.install()
    for case in todo:
        bench = Bench(case, links, together)
        longer = 4 if case.width < arguments.width else 1  # or else a latency would be a part of a turn that counts
        found = bench.run(arguments.rounds, longer * arguments.middle)
        bench.close()
        if rank == 0:
            record = {"run": dataclasses.asdict(case), "torch": torch.__version__, "ways": found}
            with path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(case, flush=True)
    dist.destroy_process_group()


def run(path: Path, arguments: argparse.Namespace) -> None:
    """Do the cases that are not in the file."""
    finished = {case for case, _ in runs.done(path, Case)}
    for ranks in arguments.stages:
        todo = [case for case in dict.fromkeys(cases(ranks, arguments)) if case not in finished]
        if todo:
            network = pipeline_tcp.Network(ranks) if arguments.tcp else None
            together = Together(network, multiprocessing.get_context("fork").Barrier(ranks).wait)
            with tempfile.TemporaryDirectory() as folder:
                # If a process fails, the others are ended; daemons end with this process. It has computed nothing, so
                # it can fork, which spares each process the imports.
                torch.multiprocessing.start_processes(
                    process, (folder, path, todo, arguments, together), nprocs=ranks, daemon=True, start_method="fork"
                )
            if network is not None:
                network.stop()


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a narrow net, two rounds, few cases")
    parser.add_argument("--stages", type=numbers, help="numbers of processes (default: 2,3; quick: 2)")
    parser.add_argument("--microbatches", type=numbers, help="in a step (default: 1,2,4,8,16; quick: 1,4)")
    parser.add_argument("--rounds", type=int, help="turns of each way (default: 5; quick: 2)")
    parser.add_argument("--tcp", action="store_true", help="few cases, with slow links that are TCP; needs root")
    parser.add_argument("--runs", type=Path, help=f"the file of runs (default: {RUNS}, or {TCP_RUNS})")
    arguments = parser.parse_args()
    if arguments.tcp and os.geteuid() != 0:
        parser.error("--tcp makes network namespaces: run it as root")
    arguments.runs = arguments.runs or (TCP_RUNS if arguments.tcp else RUNS)
    arguments.stages = arguments.stages or ([2] if arguments.quick or arguments.tcp else [2, 3])
    arguments.microbatches = arguments.microbatches or ([1, 4] if arguments.quick else [1, 2, 4, 8, 16])
    arguments.rounds = arguments.rounds or (2 if arguments.quick else 5)
    arguments.width = NARROW if arguments.quick else WIDTH
    arguments.middle = 4 if arguments.quick else 8
    if arguments.quick:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / RUNS.name
            run(path, arguments)
            print("\n".join(pipeline_report.report(path)))
    else:
        run(arguments.runs, arguments)
        runs.write_report(arguments.runs, pipeline_report.report(arguments.runs, tcp=arguments.tcp))


if __name__ == "__main__":
    main()
