"""What all ways of benchmarks/pipeline.py share: the net, its parts, what a way has to train in, and the clock."""

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")
CLASSES = 10
WAIT = "wait"
HEADS = "heads"  # what only predicts gradients


class Clock:
    """Seconds that this rank computes, by kind of computation; time within another kind, or a wait, counts once.

    Attributes:
        half_speed: Sleep after each computation for as long as it took; the sleep counts as computing.
    """

    def __init__(self) -> None:
        self.half_speed = False
        self.seconds: dict[str, float] = {}
        self._within = 0.0  # seconds of other kinds within the one that runs

    def timed(self, kind: str, function: Callable[..., T]) -> Callable[..., T]:
        """The function, whose calls count as `kind`; as WAIT they count as no computation."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> T:
            around, self._within = self._within, 0.0
            start = time.perf_counter()
            result = function(*args, **kwargs)
            if self.half_speed and kind != WAIT:
                time.sleep(time.perf_counter() - start - self._within)
            seconds = time.perf_counter() - start
            if kind != WAIT:
                self.seconds[kind] = self.seconds.get(kind, 0.0) + seconds - self._within
            self._within = around + seconds
            return result

        return call


@dataclass(frozen=True)
class Setting:
    """What a way has to train in.

    Attributes:
        blocks: The blocks of each rank.
        microbatches: In each step.
        group: Its own group of all ranks: messages that a way has not received yet do not reach another way.
        clock: Times every computation of the way.
    """

    blocks: tuple[int, ...]
    microbatches: int
    group: dist.ProcessGroup
    clock: Clock


class Trainee(Protocol):
    """One rank's part of a net in training.

    Attributes:
        exact: Whether its first update is that of one process.
    """

    exact: bool

    def step(self, x: Tensor, target: Tensor) -> None:
        """One step with the optimizer's; the whole batch is given to every rank, which takes what it needs."""

    def finish(self) -> None:
        """Complete the micro-batches that are under way between two steps."""

    def state(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """The name, the weight and the gradient of the last update, of each parameter of this rank."""


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


def network(width: int, blocks: int) -> nn.Sequential:
    """Pre-norm residual MLP blocks and a head."""
    return nn.Sequential(*(Block(width) for _ in range(blocks)), nn.Linear(width, CLASSES))


def loss_of(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target)


def optimizer_for(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.01, momentum=0.9)


class Part(nn.Module):
    """Some layers of a net, under the net's names."""

    def __init__(self, net: nn.Sequential, layers: range) -> None:
        super().__init__()
        for i in layers:
            self.add_module(str(i), net[i])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x)
        return x


def parts(net: nn.Sequential, blocks: Sequence[int]) -> list[Part]:
    """The stages, with these numbers of blocks, and the head in the last."""
    bounds = [0, *itertools.accumulate(blocks)]
    bounds[-1] += 1
    return [Part(net, range(low, high)) for low, high in itertools.pairwise(bounds)]


def state_of(*modules: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
    for module in modules:
        for name, p in module.named_parameters():
            assert p.grad is not None
            yield name, p, p.grad
