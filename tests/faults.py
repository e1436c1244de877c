"""Three processes with a stage each, one of which stops: `python tests/faults.py FOLDER CASE...` runs cases at once.

Each process is forked, ends as a program does, and writes what it prints to FOLDER/CASE.RANK; FOLDER/ended.json has the
exit status and the seconds of each.
"""

import json
import os
import random
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from in_stages import X, Y, loss_of, made
from torch import Tensor, distributed

from dni_fx import DniFxError
from dni_fx.pipeline import ScheduleDecoupled, stages

RANKS = 3
TIMEOUT = 4.0
STEPS = 10**6  # until another process stops
LONGEST = 20.0  # seconds of a case


class Case(NamedTuple):
    """A net, the rank of the process that stops, and how it stops."""

    net: str
    rank: int
    fault: "Callable[[ScheduleDecoupled], object]"
    options: dict[str, Any] = {}
    after: int = 3  # steps


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


def raise_outside(schedule: ScheduleDecoupled) -> None:
    raise ValueError("no such file")


def end(schedule: ScheduleDecoupled) -> None:
    distributed.destroy_process_group()
    sys.exit()


def close(schedule: ScheduleDecoupled) -> None:
    schedule.close()
    schedule.close()
    try:
        schedule.step(X, target=Y)
    except DniFxError as error:
        print(error)
    sys.exit()


def wait_to_be_killed(schedule: ScheduleDecoupled) -> None:
    """The process that starts the others kills this one at some moment."""


SYNC = {"sync": True}
CASES = {
    "killed first": Case("unit", 0, kill),
    "killed middle": Case("linear", 1, kill),
    "killed last": Case("tail", 2, kill),
    "killed sync": Case("tail", 1, kill, SYNC),
    "killed before": Case("linear", 2, kill, after=0),
    "stopped first": Case("unit", 0, stop),
    "stopped middle": Case("linear", 1, stop),
    "stopped sync": Case("tail", 2, stop, SYNC),
    "loss": Case("linear", 2, raise_in_loss),
    "outside": Case("unit", 0, raise_outside),
    "interrupt": Case("unit", 1, interrupt),
    "forgets": Case("unit", RANKS, end),
    "ends": Case("linear", 1, end),
    "closes": Case("linear", 0, close),
    "closes sync": Case("linear", 2, close, SYNC),
    "elastic": Case("tail", 1, kill, {"elastic": True}),
    "elastic linear": Case("linear", 1, stop, {"elastic": True}),
    "any 0": Case("unit", 0, wait_to_be_killed),
    "any 1": Case("linear", 1, wait_to_be_killed),
    "any 2": Case("tail", 2, wait_to_be_killed, SYNC),
}


def run(case: Case, rank: int, store: str) -> None:
    """Train a stage until a process stops."""
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    stage = stages(made(case.net, RANKS))[rank]
    optimizer = torch.optim.SGD(stage.parameters(), 0.1)
    schedule = ScheduleDecoupled(stage, 2, loss_of, optimizer=optimizer, timeout=TIMEOUT, **case.options)
    warnings.simplefilter("always")
    for step in range(40 if "elastic" in case.options else STEPS):
        if step == case.after and case.rank in (rank, RANKS):
            case.fault(schedule)
        try:
            schedule.step(X, target=Y)
        except DniFxError as error:
            print(f"{type(error).__name__}: {error}")
            break
    else:
        print({key: value for key, value in schedule.metrics().items() if key in ("updates", "dropped")})
    try:
        schedule.step(X, target=Y)
    except DniFxError as error:
        print(error)


def start(name: str, rank: int, folder: Path) -> int:
    """Fork a process; return its number."""
    pid = os.fork()
    if pid == 0:
        output = os.open(folder / f"{name}.{rank}", os.O_CREAT | os.O_WRONLY)
        os.dup2(output, 1)
        os.dup2(output, 2)
        run(CASES[name], rank, f"file://{folder}/{name}.store")
        sys.exit()
    return pid


def main(folder: Path, names: list[str]) -> None:
    begin = time.monotonic()
    running: dict[int, tuple[str, int]] = {}
    for name in names:
        for rank in range(RANKS):
            running[start(name, rank, folder)] = name, rank
    moments = {
        pid: begin + random.uniform(0.1, 4)
        for pid, (name, rank) in running.items()
        if CASES[name].fault is wait_to_be_killed and CASES[name].rank == rank
    }
    ended: dict[str, list[Any]] = {name: [None] * RANKS for name in names}
    while running:
        for pid in [pid for pid, moment in moments.items() if time.monotonic() > moment]:
            os.kill(pid, signal.SIGKILL)
            del moments[pid]
        for pid, (name, rank) in list(running.items()):
            others = [other for other, _ in running.values() if other == name]
            stopped = CASES[name].fault is stop and CASES[name].rank == rank
            if (stopped and len(others) == 1) or time.monotonic() > begin + LONGEST:
                os.kill(pid, signal.SIGKILL)
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                ended[name][rank] = os.waitstatus_to_exitcode(status), round(time.monotonic() - begin, 1)
                del running[pid]
        time.sleep(0.02)
    (folder / "ended.json").write_text(json.dumps(ended))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or list(CASES))
