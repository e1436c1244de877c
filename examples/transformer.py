"""A transformer with an attention mask: digits as sequences of rows, some of which are hidden.

`python examples/transformer.py` trains it beside backprop.
"""

import common
import torch
from torch import Tensor, nn

BATCH = 64


class Block(nn.Module):
    """Masked self-attention and an MLP, each beside a skip."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        attended = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Classifies images (N, 1, H, W) row by row; `seen` (N, H) is true where a row may be read."""

    def __init__(self, side: int = 28, width: int = 64, heads: int = 4, blocks: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear(side, width)
        self.position = nn.Parameter(torch.zeros(1, side, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.neck = nn.Sequential(nn.Linear(width, 64), nn.BatchNorm1d(64), nn.ReLU())
        self.head = nn.Linear(64, 10)

    def forward(self, image: Tensor, seen: Tensor) -> Tensor:
        mask = seen[:, None, None, :]
        x = self.embed(image.squeeze(1)) + self.position
        for block in self.blocks:
            x = block(x, mask)
        weights = seen.unsqueeze(-1).to(x.dtype)
        return self.head(self.neck((self.norm(x) * weights).sum(1) / weights.sum(1)))


def build_model() -> nn.Module:
    return Transformer()


def example_inputs() -> tuple[Tensor, Tensor]:
    return torch.rand(BATCH, 1, 28, 28), hidden_rows(BATCH, 28)


def hidden_rows(count: int, side: int) -> Tensor:
    """A mask that hides a tenth of the rows at random, but never the middle one."""
    seen = torch.rand(count, side) > 0.1
    seen[:, side // 2] = True
    return seen


def main() -> None:
    steps, digits = common.set_up(__doc__, 200)
    task = common.classification(digits, BATCH, lambda x: (x, hidden_rows(len(x), digits.side)), cuts=["neck"])
    common.run(lambda: Transformer(digits.side), task, steps)


if __name__ == "__main__":
    main()
