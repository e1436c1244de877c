"""A deep residual network on real digits: cut into 4 segments, it holds less than half of backprop's activations.

dni-fx compare examples/deep.py --data examples/deep.py:batches --metric examples/deep.py:error --cuts 4
"""

from collections.abc import Iterator

import common
import torch
from torch import Tensor, nn

BATCH, WIDTH, DEPTH = 512, 64, 16

digits = common.bundled_digits()
error = common.error_percent(digits)


class Block(nn.Module):
    """A residual block with a layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.second(self.first(self.norm(h)).relu())


def build_model() -> nn.Module:
    torch.manual_seed(0)
    blocks = [Block() for _ in range(DEPTH)]
    return nn.Sequential(nn.Flatten(), nn.Linear(digits.side**2, WIDTH), *blocks, nn.Linear(WIDTH, 10))


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels, without an end."""
    while True:
        rows = torch.randint(len(digits.train_y), (BATCH,))
        yield digits.train_x[rows], digits.train_y[rows]
