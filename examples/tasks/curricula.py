"""The tasks as objects: what to show next, what an output costs, and how the task grows."""

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import generators
import torch
from generators import Batch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

BITS = 8
SOLVED = 0.15  # bits of error a bit, below which Copy and Repeat Copy grow (Jaderberg et al. 2017)


def bit_errors(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of logits (N, L, D) in nats a bit, (N, L)."""
    return binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(-1)


@dataclass
class Task(ABC):
    """One task; its fields are where its curriculum stands, which a checkpoint keeps."""

    unit: ClassVar[str]  # of the loss
    longer: ClassVar[int] = 0  # how many times as long the sequences of the generalisation phase are; 0: there is none

    @property
    @abstractmethod
    def sizes(self) -> tuple[int, int]:
        """Features of inputs and of outputs."""

    @property
    @abstractmethod
    def level(self) -> dict[str, int]:
        """Where the curriculum stands: the numbers that grow, by name."""

    @abstractmethod
    def batch(self, rows: int) -> Batch:
        """Random sequences, as hard as the curriculum has come to."""

    @abstractmethod
    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each step, (N, L), in `unit`."""

    @abstractmethod
    def right(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What share of each step's answer is right, (N, L)."""

    @abstractmethod
    def advance(self, step: int, loss: float) -> None:
        """Grow, if it is time to: `step` steps are done, and the last one had this loss."""

    def long_batch(self, rows: int) -> Batch:
        """Sequences that are longer than those trained on, for the generalisation phase."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


@dataclass
class Bits(Task):
    """What tasks share whose answers are bits."""

    def right(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs > 0) == (targets > 0.5)).float().mean(-1)


@dataclass
class Copy(Bits):
    """Repeat `length` symbols and say the end; one more when that is learned."""

    length: int = 1
    unit = "bits"
    sizes = (BITS + 2, BITS + 1)

    @property
    def level(self) -> dict[str, int]:
        return {"N": self.length}

    def batch(self, rows: int) -> Batch:
        return generators.repeat_copy(rows, self.length, 1, BITS)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return bit_errors(outputs, targets) / math.log(2)

    def advance(self, step: int, loss: float) -> None:
        if loss < SOLVED:
            self.grow()

    def grow(self) -> None:
        self.length += 1


@dataclass
class RepeatCopy(Copy):
    """Repeat `length` symbols `repeats` times; once more when that is learned, or one symbol more."""

    repeats: int = 1

    @property
    def level(self) -> dict[str, int]:
        return {"N": self.length, "R": self.repeats}

    def batch(self, rows: int) -> Batch:
        return generators.repeat_copy(rows, self.length, self.repeats, BITS)

    def grow(self) -> None:
        if self.repeats < self.length:
            self.repeats += 1
        else:
            self.length += 1


@dataclass
class Scheduled(Task):
    """pytorch-dnc's tasks: random lengths up to a maximum, which grows by `increment` every `every` steps."""

    maximum: int
    size: int
    increment: int = 0
    every: int = 1000
    shortest: ClassVar[int] = 2

    @property
    def level(self) -> dict[str, int]:
        return {"max length": self.maximum}

    def batch(self, rows: int) -> Batch:
        return self._batch(rows, self.shortest, self.maximum)

    def long_batch(self, rows: int) -> Batch:
        return self._batch(rows, 2, self.longer * self.maximum)

    def advance(self, step: int, loss: float) -> None:
        if step % self.every == 0:
            self.maximum += self.increment

    @abstractmethod
    def generate(self, rows: int, length: int) -> Batch:
        """Sequences of one length."""

    def _batch(self, rows: int, shortest: int, longest: int) -> Batch:
        length = torch.randint(min(shortest, longest), longest + 1, ())
        return self.generate(rows, int(length))


@dataclass
class DncCopy(Scheduled, Bits):
    """Say the bits again; the loss is the mean over all steps."""

    unit = "nats"
    longer = 10
    shortest = 1

    @property
    def sizes(self) -> tuple[int, int]:
        return self.size, self.size

    def generate(self, rows: int, length: int) -> Batch:
        return generators.dnc_copy(rows, length, self.size)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return bit_errors(outputs, targets)

    def right(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().right(outputs[..., :-1], targets[..., :-1])  # without the flag, which is never wanted


@dataclass
class Number(Scheduled):
    """What tasks share whose answer is a whole number."""

    unit = "squared error"

    @property
    def sizes(self) -> tuple[int, int]:
        return self.size, 1

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().squeeze(-1)

    def right(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.round() == targets).squeeze(-1).to(torch.float32)


@dataclass
class Adding(Number):
    """Say the sum of the digits. (pytorch-dnc takes the sum of all outputs for it, which no single window knows.)"""

    longer = 10

    def generate(self, rows: int, length: int) -> Batch:
        return generators.adding(rows, length, self.size)


@dataclass
class Argmax(Number):
    """Say where the largest digit was."""

    longer = 2

    def generate(self, rows: int, length: int) -> Batch:
        return generators.argmax(rows, length, self.size)
