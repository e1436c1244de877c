"""The ways to train a net in a pipeline that benchmarks/pipeline.py compares: torch's schedules, and PipeDream-2BW."""

import copy
import functools
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from pipeline_net import Clock, Setting, Trainee, loss_of, optimizer_for, parts, state_of
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleZBVZeroBubble,
)


class OneProcess:
    """The whole net on rank 0; the other ranks have nothing to do."""

    exact = True

    def __init__(self, net: nn.Sequential, setting: Setting) -> None:
        self.net = net if dist.get_rank() == 0 else nn.Sequential()
        self.microbatches = setting.microbatches
        if dist.get_rank() == 0:
            self.optimizer = optimizer_for([*net.parameters()])
            self._train = setting.clock.timed("all", self._train)  # type: ignore[method-assign]

    def step(self, x: Tensor, target: Tensor) -> None:
        if dist.get_rank() == 0:
            self._train(x, target)

    def _train(self, x: Tensor, target: Tensor) -> None:
        self.optimizer.zero_grad()
        for one, labels in zip(x.chunk(self.microbatches), target.chunk(self.microbatches), strict=True):
            (loss_of(self.net(one), labels) / self.microbatches).backward()
        self.optimizer.step()

    def finish(self) -> None:
        pass

    def state(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        return state_of(self.net)


class Torch:
    """A schedule of `torch.distributed.pipelining`, whose stages lie on ranks in this order."""

    exact = True

    def __init__(self, schedule: Any, ranks: Callable[[int], list[int]], net: nn.Sequential, setting: Setting) -> None:
        placed = ranks(dist.get_world_size())
        blocks = []
        for stage, rank in enumerate(placed):  # the stages of a rank share its blocks
            before, count = placed[:stage].count(rank), placed.count(rank)
            blocks.append((setting.blocks[rank] + count - 1 - before) // count)
        self.mine = [stage for stage, rank in enumerate(placed) if rank == dist.get_rank()]
        self.last = len(placed) - 1 in self.mine
        modules = parts(net, blocks)
        self.modules = [modules[stage] for stage in self.mine]
        stages = [
            PipelineStage(module, stage, len(placed), torch.device("cpu"), group=setting.group)
            for stage, module in zip(self.mine, self.modules, strict=True)
        ]
        single = len(placed) == dist.get_world_size()
        self.schedule = schedule(stages[0] if single else stages, setting.microbatches, loss_fn=loss_of)
        self.optimizer = optimizer_for([p for module in self.modules for p in module.parameters()])
        self._time(stages, setting.clock)

    def _time(self, stages: list[PipelineStage], clock: Clock) -> None:
        for owner, method, kind in (
            *((stage, "forward_one_chunk", "forward") for stage in stages),
            *((stage, "backward_one_chunk", "backward") for stage in stages),
            *((stage, "backward_weight_one_chunk", "backward") for stage in stages),
            *((stage, "perform_reduce_grad", "backward") for stage in stages),
            (self.schedule, "_compute_loss", "forward"),
            (self.optimizer, "step", "optimizer"),
        ):
            setattr(owner, method, clock.timed(kind, getattr(owner, method)))

    def step(self, x: Tensor, target: Tensor) -> None:
        self.optimizer.zero_grad()
        inputs = (x,) if 0 in self.mine else ()
        self.schedule.step(*inputs, target=target if self.last else None, return_outputs=False)
        self.optimizer.step()

    def finish(self) -> None:
        pass

    def state(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        return state_of(*self.modules)


class Inbox:
    """Tensors of one shape from one rank, in order; the next is asked for as soon as one is there."""

    def __init__(self, rank: int, group: dist.ProcessGroup) -> None:
        self.rank, self.group = rank, group
        self._next: tuple[Tensor, Any] | None = None

    def ask(self, like: Tensor) -> None:
        if self._next is None:
            tensor = torch.empty_like(like)
            self._next = tensor, dist.irecv(tensor, self.rank, group=self.group)

    def take(self, like: Tensor, more: bool) -> Tensor:
        self.ask(like)
        assert self._next is not None
        tensor, request = self._next
        request.wait()
        self._next = None
        if more:
            self.ask(like)
        return tensor


@dataclass
class UnderWay:
    """A micro-batch between its forward and its backward pass."""

    batch: int
    x: Tensor
    output: Tensor


class TwoBufferedWeights:
    """PipeDream-2BW (Narayanan et al. 2021): 1F1B without a flush, with two versions of the weights.

    The gradient of batch k, summed over its micro-batches, is that of the weights before the last update:
    W(k + 1) = W(k) - lr g(W(k - 1)). A rank has as many micro-batches under way as there are ranks from it to the last.
    Batch k runs on version k mod 2, which then becomes W(k + 1).
    """

    exact = True

    def __init__(self, net: nn.Sequential, setting: Setting) -> None:
        rank, ranks = dist.get_rank(), dist.get_world_size()
        self.microbatches = setting.microbatches
        if self.microbatches < ranks:
            raise ValueError(f"Two versions are enough from {ranks} micro-batches on, the number of stages.")
        self.first, self.last, self.depth = rank == 0, rank == ranks - 1, ranks - rank
        module = parts(net, setting.blocks)[rank]
        self.versions = module, copy.deepcopy(module)
        # They have the storage of the version that the optimizer updates, and counts of changes of their own.
        self.parameters = [nn.Parameter(p.data) for p in module.parameters()]
        self.optimizer = optimizer_for(self.parameters)
        self.group = setting.group
        self.below, self.above = Inbox(rank - 1, self.group), Inbox(rank + 1, self.group)
        self.under_way: deque[UnderWay] = deque()
        self.sends: deque[tuple[Any, Tensor]] = deque()
        self.batches = self.backwards = 0
        clock = setting.clock
        self._forward = clock.timed("forward", self._forward)  # type: ignore[method-assign]
        self._backward = clock.timed("backward", self._backward)  # type: ignore[method-assign]
        self._update = clock.timed("optimizer", self._update)  # type: ignore[method-assign]

    def step(self, x: Tensor, target: Tensor) -> None:
        targets = target.chunk(self.microbatches)
        for i, one in enumerate(x.chunk(self.microbatches)):
            given = one if self.first else self.below.take(one, more=i + 1 < self.microbatches).requires_grad_()
            output = self._forward(given, targets[i])
            if not self.last:
                self._send(output.detach(), dist.get_rank() + 1)
            self.under_way.append(UnderWay(self.batches, given, output))
            if len(self.under_way) == self.depth:
                self._complete()
        self.batches += 1

    def finish(self) -> None:
        while self.under_way:
            self._complete()
        while self.sends:
            self.sends.popleft()[0].wait()

    def state(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        for (name, _), p in zip(self.versions[0].named_parameters(), self.parameters, strict=True):
            assert p.grad is not None
            yield name, p, p.grad

    def _complete(self) -> None:
        """The backward pass of the oldest micro-batch, and the update after the last of a batch."""
        one = self.under_way.popleft()
        gradient = None if self.last else self.above.take(one.output, more=len(self.under_way) > 0)
        self._backward(one, gradient)
        if not self.first:
            assert one.x.grad is not None
            self._send(one.x.grad, dist.get_rank() - 1)
        self.backwards += 1
        if self.backwards % self.microbatches == 0:
            self._update(one.batch)

    def _forward(self, x: Tensor, target: Tensor) -> Tensor:
        output: Tensor = self.versions[self.batches % 2](x)
        return loss_of(output, target) / self.microbatches if self.last else output

    def _backward(self, one: UnderWay, gradient: Tensor | None) -> None:
        one.output.backward(gradient)

    def _update(self, batch: int) -> None:
        old, new = self.versions[batch % 2], self.versions[(batch + 1) % 2]
        for p, own, source in zip(self.parameters, old.parameters(), new.parameters(), strict=True):
            own.data.copy_(source.data)
            p.data, p.grad, own.grad = own.data, own.grad, None
        self.optimizer.step()

    def _send(self, tensor: Tensor, rank: int) -> None:
        self.sends.append((dist.isend(tensor, rank, group=self.group), tensor))
        while len(self.sends) > 4 * self.depth:  # older ones have arrived: waiting cannot block two ranks
            self.sends.popleft()[0].wait()


def in_turn(ranks: int) -> list[int]:
    return [*range(ranks)]


def in_loops(ranks: int) -> list[int]:
    return 2 * [*range(ranks)]


def in_v(ranks: int) -> list[int]:
    return [*range(ranks), *reversed(range(ranks))]


RIVALS: dict[str, Callable[[nn.Sequential, Setting], Trainee]] = {
    "one process": OneProcess,
    "GPipe": functools.partial(Torch, ScheduleGPipe, in_turn),
    "1F1B": functools.partial(Torch, Schedule1F1B, in_turn),
    "interleaved 1F1B": functools.partial(Torch, ScheduleInterleaved1F1B, in_loops),
    "ZBV": functools.partial(Torch, ScheduleZBVZeroBubble, in_v),
    "PipeDream-2BW": TwoBufferedWeights,
}
