"""Kills of a process of a pipeline at random moments: when the others end, which process they name, and what is lost.

Run:  python benchmarks/pipeline_kills.py             writes benchmarks/results/pipeline_kills.md; a few minutes
      python benchmarks/pipeline_kills.py --kills 4   fewer; --output FILE for another file

Each process is forked and trains a stage, with a checkpoint after every third step. One gets SIGKILL at a random moment
of a random part of its run. Then all are started again in the same folder: they have to go on from the last checkpoint
that was complete, and to end with the weights of a run without a kill, bit for bit.
"""

import argparse
import gc
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import runs
import torch
import torch.distributed as dist
from torch import nn

import dni_fx
from dni_fx.errors import DniFxError
from dni_fx.pipeline import ScheduleDecoupled, Stage, latest, load, save, stages

RESULTS = Path(__file__).parent / "results" / "pipeline_kills.md"
STEPS, EVERY, LONGEST = 12, 3, 40.0  # LONGEST: seconds, then a process hangs
CONNECT, STEP, SAVE, CLOSE = "connect", "step", "checkpoint", "close"
PARTS = (CONNECT, STEP, SAVE, STEP, CLOSE)  # of a run, in which kills take turns
END = "end"
WAYS = {"sync": {"synthesizer": "linear"}, "exits": {"synthesizer": "exit(weights='copy')", "loss": "cross_entropy"}}


class Case(NamedTuple):
    """What is trained, and in how many processes."""

    stages: int
    way: str


class Mark(NamedTuple):
    """When a process began a part of its run."""

    part: str
    seconds: float


class Ended(NamedTuple):
    """The end of a run: of each process the exit status and the error, and the seconds since the kill."""

    statuses: list[int]
    errors: list[str]
    seconds: float
    hung: int


def made(case: Case) -> list[Stage]:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Dropout(0.1)) for _ in range(6)]
    model = nn.Sequential(*blocks, nn.Linear(32, 4))
    return stages(dni_fx.transform(model, torch.randn(8, 32), cuts=case.stages, verify=False, **WAYS[case.way]).train())


def train(case: Case, stage: Stage, folder: Path, run: str) -> None:
    """A process: the parts of its run are in the file RUN.RANK, its first step is in RUN.RANK.begun."""
    rank = stage.index
    marks = os.open(folder / f"{run}.{rank}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def mark(part: str) -> None:
        os.write(marks, f"{part} {time.monotonic()}\n".encode())

    store = f"file://{folder}/{run}.store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=case.stages)
    mark(CONNECT)
    torch.manual_seed(rank)  # for dropout
    optimizer = torch.optim.Adam(stage.parameters())
    loss_fn = nn.functional.cross_entropy
    schedule = ScheduleDecoupled(stage, 4, loss_fn, optimizer=optimizer, sync=case.way == "sync")
    begun = load(folder / "checkpoints", schedule)
    (folder / f"{run}.{rank}.begun").write_text(str(begun))
    for step in range(begun, STEPS):
        if step > begun:
            mark(STEP)
        draw = torch.Generator().manual_seed(step)
        x, y = torch.randn(16, 32, generator=draw), torch.randint(0, 4, (16,), generator=draw)
        schedule.step(x, target=y)
        if (step + 1) % EVERY == 0:
            mark(SAVE)
            save(folder / "checkpoints", schedule)
    mark(CLOSE)
    schedule.close()
    mark(END)
    torch.save(stage.state_dict(), folder / f"{run}.{rank}.pt")
    dist.destroy_process_group()


def start(case: Case, stage: Stage, folder: Path, run: str) -> int:
    """Fork a process; return its number. It ends as a program does."""
    pid = os.fork()
    if pid == 0:
        output = os.open(folder / f"{run}.{stage.index}.output", os.O_CREAT | os.O_WRONLY)
        os.dup2(output, 1)
        os.dup2(output, 2)
        try:
            train(case, stage, folder, run)
        except DniFxError as error:
            sys.exit(f"{type(error).__name__}: {error}")
        sys.exit()
    return pid


def marks_of(folder: Path, run: str, rank: int) -> list[Mark]:
    path = folder / f"{run}.{rank}"
    lines = path.read_text().splitlines() if path.exists() else []
    return [Mark(part, float(seconds)) for part, seconds in (line.split() for line in lines)]


def ends(case: Case, found: list[Stage], folder: Path, run: str, kill: tuple[int, int, float] | None = None) -> Ended:
    """Run all processes to their end.

    Args:
        kill: The rank of the process that is killed, the number of the part of its run, and the seconds from the
            beginning of this part.
    """
    pids = [start(case, stage, folder, run) for stage in found]
    if kill is not None:
        rank, number, delay = kill
        while len(marks_of(folder, run, rank)) <= number:
            time.sleep(0.0005)
        time.sleep(delay)
        os.kill(pids[rank], signal.SIGKILL)
    begin = time.monotonic()
    statuses: dict[int, int] = {}
    hung = 0
    while len(statuses) < len(pids):
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            statuses[pid] = os.waitstatus_to_exitcode(status)
        elif time.monotonic() - begin > LONGEST:
            for left in set(pids) - set(statuses):
                hung += 1
                os.kill(left, signal.SIGKILL)
                statuses[left] = os.waitstatus_to_exitcode(os.waitpid(left, 0)[1])
        else:
            time.sleep(0.002)
    outputs = [(folder / f"{run}.{rank}.output").read_text().splitlines() or [""] for rank in range(case.stages)]
    return Ended([statuses[pid] for pid in pids], [lines[-1] for lines in outputs], time.monotonic() - begin, hung)


def weights(folder: Path, run: str, case: Case) -> list[dict[str, torch.Tensor]]:
    return [torch.load(folder / f"{run}.{rank}.pt") for rank in range(case.stages)]


def killed(case: Case, found: list[Stage], through: Path, part: str, draw: random.Random) -> list[str]:
    """Kill a process once, and start all again: a row of the table."""
    rank = draw.randrange(case.stages)
    whole = marks_of(through, "run", rank)
    number = draw.choice([k for k, mark in enumerate(whole) if mark.part == part])
    delay = draw.uniform(0, whole[number + 1].seconds - whole[number].seconds)
    folder = Path(tempfile.mkdtemp(dir=through))
    ended = ends(case, found, folder, "killed", (rank, number, delay))
    last = latest(folder / "checkpoints")
    complete = 0 if last is None else int(last.name.removeprefix("step-"))
    at = marks_of(folder, "killed", rank)[-1].part
    others = [k for k in range(case.stages) if k != rank]
    line = f"PeerError: stage {rank} (rank {rank}) is gone: its process has ended"
    named = sum(ended.errors[k] == line for k in others)
    well = sum(ended.statuses[k] == 0 for k in others)
    again = ends(case, found, folder, "again")
    begun = {int((folder / f"again.{k}.begun").read_text()) for k in range(case.stages)}
    # A process that has begun the part after a checkpoint knows that it is complete.
    saved = max(_saved(marks_of(folder, "killed", k)) for k in range(case.stages))
    goes_on = begun == {complete} and complete >= saved and not any(again.statuses)
    pairs = zip(weights(through, "run", case), weights(folder, "again", case), strict=True) if goes_on else []
    same = [torch.equal(a[key], b[key]) for a, b in pairs for key in a]
    said = f"{named} of {len(others)}" + (f", {well} had ended" if well else "")
    if named + well < len(others):
        said += ": " + next(e for k, e in enumerate(ended.errors) if k != rank and e != line)
    went_on = f"step {complete}" if goes_on else f"no: {begun}, {complete}, {again.errors}"
    equal = "equal" if same and all(same) else "no"
    cells = [case.stages, case.way, rank, at, f"{ended.seconds:.2f}", ended.hung + again.hung, said, went_on, equal]
    return [str(cell) for cell in cells]


def _saved(marks: list[Mark]) -> int:
    """The steps of the last checkpoint that a process has written."""
    return EVERY * sum(mark.part == SAVE for mark in marks[:-1])


def report(arguments: argparse.Namespace) -> Iterator[str]:
    yield "# Processes of a pipeline that are killed\n"
    command = f"`python benchmarks/pipeline_kills.py --kills {arguments.kills}`"
    yield f"{command}; torch {torch.__version__}, gloo, {os.cpu_count()} cores."
    yield f"{arguments.kills} kills (SIGKILL) at random moments; {STEPS} steps, a checkpoint after each {EVERY}."
    yield "Part: what the process did: `connect` (with the first step), `step`, `checkpoint`, `close`, `end`. Seconds:"
    yield f"until all others have ended. Left: processes that have not after {LONGEST:g} seconds. Named: how many of"
    yield "the others raise a PeerError that names the stage that was killed. Goes on from: the last complete"
    yield "checkpoint, where all begin when they are started again. Weights: at the end, beside those of a run without"
    yield "a kill, bit for bit.\n"
    yield "| stages | schedule | killed rank | part | seconds | left | named | goes on from | weights |"
    yield "|---|---|---|---|---|---|---|---|---|"
    cases = [Case(count, way) for count in (2, 3) for way in WAYS]
    nets = {case: made(case) for case in cases}
    gc.freeze()  # else the end of each process copies all pages
    base = Path(tempfile.mkdtemp())  # without a context: it would end in each forked process
    for case in cases:
        folder_of(base, case).mkdir()
        assert not any(ends(case, nets[case], folder_of(base, case), "run").statuses)
    for k in range(arguments.kills):
        case = cases[k % len(cases)]
        row = killed(case, nets[case], folder_of(base, case), PARTS[k % len(PARTS)], random.Random(k))
        yield f"| {' | '.join(row)} |"
    shutil.rmtree(base)


def folder_of(base: Path, case: Case) -> Path:
    return base / f"{case.stages} {case.way}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    runs.measure(__doc__, RESULTS, report, kills=20)
