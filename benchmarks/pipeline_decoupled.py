"""The decoupled ways of benchmarks/pipeline.py: with exits, with linear synthesizers, and in sync."""

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from pipeline_net import HEADS, WAIT, Setting, loss_of, optimizer_for, state_of
from torch import Tensor, nn

import dni_fx
from dni_fx.pipeline import ScheduleDecoupled, stages

EXIT = {"synthesizer": "exit(weights='copy')", "loss": "cross_entropy"}  # of a block and the head
SHARED = {"loss": "cross_entropy"}  # an exit that is the head of the last stage
LINEAR = {"synthesizer": "linear"}


class Decoupled:
    """One rank's stage of a net that dni-fx has cut.

    Without `sync` the number of micro-batches in a step makes no difference, and nothing is flushed between steps. As
    a turn of the benchmark begins with a barrier, each rank is one micro-batch ahead of the one above it, as it is in a
    pipe that runs.
    """

    exact = False

    def __init__(self, options: dict[str, Any], sync: bool, net: nn.Sequential, setting: Setting) -> None:
        bounds = [sum(setting.blocks[:k]) for k in range(1, len(setting.blocks))]
        ahead = 2 if options is EXIT else 1  # with its exit, the stage has as many blocks
        x = torch.zeros(2, net[0].net[1].in_features)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cut = dni_fx.transform(net, x, cuts=[str(b - ahead) for b in bounds], verify=False, **options)
        self.rank, self.count = dist.get_rank(), len(setting.blocks)
        self.sync, self.microbatches = sync, setting.microbatches if sync else 1
        self.stage = stages(cut.train())[self.rank]
        optimizer = optimizer_for([*self.stage.parameters()])
        self.schedule = ScheduleDecoupled(
            self.stage, self.microbatches, loss_of, optimizer=optimizer, sync=sync, group=setting.group
        )
        timed = setting.clock.timed
        self.schedule._send = timed(WAIT, self.schedule._send)
        self.schedule._run = timed("forward", self.schedule._run)  # with the backward passes
        self.schedule._update = timed("optimizer", self.schedule._update)
        # In sync the backward pass of the segment below is in it, too.
        self.schedule.targets.learn = timed("backward" if sync else HEADS, self.schedule.targets.learn)
        cut = self.stage.cut
        for head in () if cut is None else [*cut.crossings, *([] if cut.exit is None else [cut.exit])]:
            head.forward = timed(HEADS, head.forward)
        self.ahead = False
        self.parts = setting.microbatches // self.microbatches

    def step(self, x: Tensor, target: Tensor) -> None:
        parts = [*zip(x.chunk(self.parts), target.chunk(self.parts), strict=True)]
        first = 0 if self.sync or self.ahead else self.count - 1 - self.rank
        for part in [*parts[:1] * first, *parts]:
            self.schedule.step(part[0], target=part[1])
        self.ahead, self.last = True, parts[0]

    def finish(self) -> None:
        for _ in range(self.rank if self.ahead and not self.sync else 0):
            self.schedule.step(self.last[0], target=self.last[1])
        self.ahead = False

    def close(self) -> None:
        self.schedule.close()

    def state(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        return state_of(self.stage)


DECOUPLED: dict[str, Callable[[nn.Sequential, Setting], Decoupled]] = {
    "decoupled, exits": partial(Decoupled, EXIT, False),
    "decoupled, shared head": partial(Decoupled, SHARED, False),
    "decoupled, linear": partial(Decoupled, LINEAR, False),
    "decoupled, linear, sync": partial(Decoupled, LINEAR, True),
}
