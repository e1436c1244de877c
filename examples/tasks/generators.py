"""What the sequence tasks show and want: pure functions of sizes, with torch's random numbers."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

REPEATS_UNIT = 10  # the number of repeats is given in tens, so that it is about as large as a bit


@dataclass(frozen=True)
class Batch:
    """Sequences of one length.

    Args:
        inputs: (N, L, F).
        targets: (N, L, D).
        mask: (L,), 1 at the steps that the loss counts, else 0.
        answer: (L,), 1 at the steps that say the answer, else 0.
    """

    inputs: Tensor
    targets: Tensor
    mask: Tensor
    answer: Tensor


def repeat_copy(rows: int, length: int, repeats: int, bits: int = 8) -> Batch:
    """Symbols are shown once, and wanted so many times over, then an end mark; 3 + (1 + repeats) * length steps.

    As in Jaderberg et al. 2017: a mark, the symbols, and in the last channel the number of repeats. With one repeat it
    is Copy.

    Returns:
        Inputs (N, L, bits + 2), targets (N, L, bits + 1): the last channel is the end mark.
    """
    symbols = torch.randint(0, 2, (rows, length, bits)).float()
    shown = length + 2
    steps = shown + repeats * length + 1
    inputs, targets = torch.zeros(rows, steps, bits + 2), torch.zeros(rows, steps, bits + 1)
    inputs[:, 0, bits] = 1
    inputs[:, 1 : length + 1, :bits] = symbols
    inputs[:, length + 1, bits + 1] = repeats / REPEATS_UNIT
    targets[:, shown:-1, :bits] = symbols.repeat(1, repeats, 1)
    targets[:, -1, bits] = 1
    answer = (torch.arange(steps) >= shown).float()
    return Batch(inputs, targets, answer, answer)


def dnc_copy(rows: int, length: int, size: int = 6) -> Batch:
    """pytorch-dnc's Copy: bits, a flag in the last channel, and the bits once more in the last steps; 2 * length + 1.

    Returns:
        Inputs and targets (N, L, size); every step counts, as there.
    """
    bits = torch.randint(0, 2, (rows, length, size - 1)).float()
    inputs = torch.zeros(rows, 2 * length + 1, size)
    targets = torch.zeros_like(inputs)
    inputs[:, :length, :-1] = bits
    inputs[:, length, -1] = 1
    targets[:, length + 1 :, :-1] = bits
    steps = torch.arange(2 * length + 1)
    return Batch(inputs, targets, torch.ones(len(steps)), (steps > length).float())


def adding(rows: int, length: int, size: int = 6) -> Batch:
    """Digits from 0 to size - 2, one-hot, then an end symbol, at which their sum is wanted; length + 1 steps.

    Returns:
        Inputs (N, L, size), targets (N, L, 1).
    """
    digits, inputs = _digits(rows, length, size)
    return _wanted_at_the_end(inputs, digits.sum(1))


def argmax(rows: int, length: int, size: int = 6) -> Batch:
    """The same digits; the position of the largest is wanted, of the last one where there are several.

    Returns:
        Inputs (N, L, size), targets (N, L, 1).
    """
    digits, inputs = _digits(rows, length, size)
    return _wanted_at_the_end(inputs, length - 1 - digits.flip(1).argmax(1))


def windows(batch: Batch, steps: int) -> Iterator[Batch]:
    """The sequences in pieces of so many steps; the last may be shorter."""
    for at in range(0, batch.mask.numel(), steps):
        part = slice(at, at + steps)
        yield Batch(batch.inputs[:, part], batch.targets[:, part], batch.mask[part], batch.answer[part])


def padded(batch: Batch, multiple: int) -> Batch:
    """With steps of zeros that do not count, up to the next multiple."""
    missing = -batch.mask.numel() % multiple
    return Batch(
        pad(batch.inputs, (0, 0, 0, missing)),
        pad(batch.targets, (0, 0, 0, missing)),
        pad(batch.mask, (0, missing)),
        pad(batch.answer, (0, missing)),
    )


def _digits(rows: int, length: int, size: int) -> tuple[Tensor, Tensor]:
    digits = torch.randint(0, size - 1, (rows, length))
    end = torch.full((rows, 1), size - 1)
    return digits, one_hot(torch.cat([digits, end], 1), size).float()


def _wanted_at_the_end(inputs: Tensor, values: Tensor) -> Batch:
    rows, steps, _ = inputs.shape
    targets = torch.zeros(rows, steps, 1)
    targets[:, -1, 0] = values.float()
    answer = (torch.arange(steps) == steps - 1).float()
    return Batch(inputs, targets, answer, answer)
