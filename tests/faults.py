"""Three processes with a stage each, one of which stops: `python tests/faults.py FOLDER CASE...` runs cases at once.

Each process is forked, ends as a program does, and writes what it prints to FOLDER/CASE.RANK; FOLDER/ended.json has the
exit status of each.
"""

import gc
import json
import os
import random
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from in_stages import X, Y, loss_of, made
from torch import Tensor, distributed
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from dni_fx import DniFxError
from dni_fx.pipeline import ScheduleDecoupled, Stage, groups, save, stages

RANKS = 3
ALL = -1
TIMEOUT = 3.0
STEPS = 10**6  # until another process stops
LONGEST = 40.0  # seconds of a case
AT_ONCE = 6  # cases


Fault = Callable[[ScheduleDecoupled], object]


class Case(NamedTuple):
    """A net, the rank of the process that stops, and how it stops."""

    net: str
    rank: int
    fault: Fault
    options: dict[str, Any] = {}
    after: int = 3  # steps


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def kill(schedule: ScheduleDecoupled) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop(schedule: ScheduleDecoupled) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def interrupt(schedule: ScheduleDecoupled) -> None:
    schedule.stage.register_forward_hook(lambda *_: os.kill(os.getpid(), signal.SIGINT))


def raise_in_loss(schedule: ScheduleDecoupled) -> None:
    def failing(output: Tensor, target: Tensor) -> Tensor:
        raise ValueError("no such class")

    schedule.loss_fn = failing


def end(schedule: ScheduleDecoupled) -> None:
    distributed.destroy_process_group()
    sys.exit()


def close(schedule: ScheduleDecoupled) -> None:
    try:
        schedule.close()
    except DniFxError as error:
        say(str(error))
    schedule.close()
    try:
        schedule.step(X, target=Y)
    except DniFxError as error:
        say(str(error))
    sys.exit()


def close_early(schedule: ScheduleDecoupled) -> None:
    """The last stage takes one step less than the others."""
    if not schedule.stage.is_last:
        schedule.step(X, target=Y)
    close(schedule)


def kill_in_checkpoint(schedule: ScheduleDecoupled) -> None:
    """The first stage is killed when all have written their parts of a checkpoint."""
    if schedule.stage.index == 0:
        FileSystemWriter.finish = lambda *_, **__: kill(schedule)  # type: ignore[method-assign]
    try:
        save(Path(sys.argv[1]) / "checkpoints", schedule)
    except DniFxError as error:
        say(f"{type(error).__name__}: {error}")
    sys.exit()


def kill_while_connecting(schedule: ScheduleDecoupled) -> None:
    """In the first step, when the others already wait for this process."""
    groups.take = lambda key: kill(schedule)  # type: ignore[assignment,return-value]


def wait_to_be_killed(schedule: ScheduleDecoupled) -> None:
    """The process that starts the others kills this one at some moment."""


SYNC = {"sync": True}
CASES = {
    "killed 0": Case("unit", 0, wait_to_be_killed),
    "killed 1": Case("tail", 1, wait_to_be_killed, SYNC),
    "killed 2": Case("linear", 2, wait_to_be_killed),
    "killed connecting": Case("unit", 1, kill_while_connecting, {"timeout": 2 * LONGEST}, after=0),
    "killed in checkpoint": Case("unit", ALL, kill_in_checkpoint),
    "stopped": Case("linear", 1, stop),
    "stopped sync": Case("tail", 2, stop, SYNC),
    "loss": Case("linear", 2, raise_in_loss),
    "interrupt": Case("unit", 1, interrupt),
    "forgets": Case("unit", ALL, end),
    "closes": Case("linear", 0, close),
    "closes early": Case("unit", ALL, close_early),
    "elastic": Case("tail", 1, kill, {"elastic": True}, after=8),
}
STAGES: dict[str, list[Stage]] = {}  # of each net, made before the processes are forked


def run(case: Case, rank: int, store: str) -> None:
    """Train a stage until a process stops."""
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    say("begins")
    stage = STAGES[case.net][rank]
    optimizer = torch.optim.SGD(stage.parameters(), 0.1)
    schedule = ScheduleDecoupled(stage, 2, loss_of, optimizer=optimizer, **{"timeout": TIMEOUT} | case.options)
    warnings.simplefilter("always")
    for step in range(20 if "elastic" in case.options else STEPS):
        if step == case.after and case.rank in (rank, ALL):
            case.fault(schedule)
        time.sleep(0.02)  # many processes run at once
        try:
            schedule.step(X, target=Y)
        except DniFxError as error:
            say(f"{type(error).__name__}: {error}")
            break
    else:
        say(str({key: value for key, value in schedule.metrics().items() if key in ("updates", "dropped")}))
    try:
        schedule.step(X, target=Y)
    except DniFxError as error:
        say(str(error))


def start(name: str, rank: int, folder: Path) -> int:
    """Fork a process; return its number."""
    output = os.open(folder / f"{name}.{rank}", os.O_CREAT | os.O_WRONLY)
    pid = os.fork()
    if pid == 0:
        os.dup2(output, 1)
        os.dup2(output, 2)
        run(CASES[name], rank, f"file://{folder}/{name}.store")
        sys.exit()
    os.close(output)
    return pid


def is_ready(fault: Fault, path: Path) -> bool:
    """Whether a process has begun, and so can be killed; one that does not respond, while the others end."""
    texts = [path.with_name(f"{path.name}.{rank}").read_text() for rank in range(RANKS)]
    if fault is stop:
        return sum("stopped before" in text for text in texts) == RANKS - 1
    return fault is wait_to_be_killed and all(texts)


def main(folder: Path, names: list[str]) -> None:
    for net in {CASES[name].net for name in names}:
        STAGES[net] = stages(made(net, RANKS))
    gc.freeze()  # else the end of each process copies all pages
    ended: dict[str, list[Any]] = {}
    for begin in range(0, len(names), AT_ONCE):
        ended |= ends(folder, names[begin : begin + AT_ONCE])
    (folder / "ended.json").write_text(json.dumps(ended))
    os._exit(0)  # at once


def ends(folder: Path, names: Sequence[str]) -> dict[str, list[Any]]:
    """Run cases at once; return the exit status of each process."""
    begin = time.monotonic()
    running: dict[int, tuple[str, int]] = {}
    for name in names:
        for rank in range(RANKS):
            running[start(name, rank, folder)] = name, rank
    moments: dict[int, float] = {}
    ended: dict[str, list[Any]] = {name: [None] * RANKS for name in names}
    while running:
        for pid, (name, rank) in list(running.items()):
            now = time.monotonic()
            if CASES[name].rank == rank and is_ready(CASES[name].fault, folder / name):
                moments.setdefault(pid, now + (random.uniform(0, 1) if CASES[name].fault is wait_to_be_killed else 0))
            if now > min(moments.get(pid, now), begin + LONGEST):
                os.kill(pid, signal.SIGKILL)
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                ended[name][rank] = os.waitstatus_to_exitcode(status)
                del running[pid]
        time.sleep(0.02)
    return ended


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or list(CASES))
