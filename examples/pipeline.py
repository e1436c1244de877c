"""Two processes train the two stages of a cut net; the lower one does not wait for the upper one.

torchrun --standalone --nproc-per-node 2 examples/pipeline.py                     digits
torchrun --standalone --nproc-per-node 2 examples/pipeline.py --net characters    a small GPT, characters of a text
"""

import argparse
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import common
import mlp
import torch
import torch.distributed as dist
from torch import Tensor, nn

import dni_fx
from dni_fx.pipeline import ScheduleDecoupled, stages

BATCH, MICROBATCHES, LENGTH = 64, 4, 64
Draw = Callable[[], tuple[Tensor, Tensor]]
Task = tuple[str, nn.Module, list[str], Draw, tuple[Tensor, Tensor]]  # name of the data, net, cuts, batches, test


class Block(nn.Module):
    """Causal self-attention and an MLP, each beside a skip."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Predicts the next character at each place: (N, T) to (N, characters, T)."""

    def __init__(self, characters: int, width: int = 64, heads: int = 4, blocks: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(characters, width)
        self.position = nn.Parameter(torch.zeros(LENGTH, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, characters)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.position
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h)).transpose(1, 2)


def digits() -> Task:
    data = common.load_digits()

    def draw() -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(data.train_y), (BATCH,))
        return data.train_x[rows], data.train_y[rows]

    return data.name, mlp.MLP(data.side**2), ["bn2"], draw, (data.test_x, data.test_y)


def characters() -> Task:
    """Tiny Shakespeare, if its file is there; else the README of this project."""
    root = Path(__file__).resolve().parents[1]
    name = "text/tinyshakespeare.txt"
    found = [root.parent / "shared" / "data" / name, Path(os.environ.get("DNI_FX_DATA", "data")) / name]
    path = next((path for path in found if path.is_file()), root / "README.md")
    text = path.read_text(encoding="utf-8")
    number = {character: k for k, character in enumerate(sorted(set(text)))}
    train, test = torch.tensor([number[character] for character in text]).split(
        [len(text) * 9 // 10, len(text) - len(text) * 9 // 10]
    )

    def windows(part: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        rows = part[starts[:, None] + torch.arange(LENGTH + 1)]
        return rows[:, :-1], rows[:, 1:]

    def draw() -> tuple[Tensor, Tensor]:
        return windows(train, torch.randint(len(train) - LENGTH, (BATCH,)))

    tested = windows(test, torch.arange(0, len(test) - LENGTH, LENGTH)[:512])
    return path.name, GPT(len(number)), ["blocks.1"], draw, tested


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=["mnist", "characters"], default="mnist")
    parser.add_argument("--steps", type=int, default=300, help="batches of 64 (default: %(default)s)")
    parser.add_argument("--sync", action="store_true", help="update once a batch, when all gradients have come")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()

    torch.manual_seed(0)  # the processes build the same net, and draw the same batches
    data, net, cuts, draw, (test_x, test_y) = digits() if arguments.net == "mnist" else characters()
    exit = {"synthesizer": "exit(weights='copy')", "loss": "cross_entropy"}
    cut = dni_fx.transform(net, draw()[0], cuts=cuts, **exit)
    stage = stages(cut)[rank]  # this process trains one stage
    optimizer = torch.optim.Adam(stage.parameters(), lr=1e-3)
    loss_fn = nn.functional.cross_entropy
    schedule = ScheduleDecoupled(stage, MICROBATCHES, loss_fn, optimizer=optimizer, sync=arguments.sync)

    if stage.is_last:
        print(f"{data}, {arguments.steps} steps of batch {BATCH}", flush=True)
    torch.manual_seed(1)
    begin = time.perf_counter()
    for step in range(1, arguments.steps + 1):
        x, y = draw()
        losses: list[Tensor] = []
        schedule.step(x, target=y, losses=losses)  # a rank takes the arguments that its stage needs
        if stage.is_last and step % max(1, arguments.steps // 10) == 0:
            loss, rate = torch.stack(losses).mean().item(), step * BATCH / (time.perf_counter() - begin)
            print(f"step {step}: loss {loss:.3f}, {rate:.0f} samples/s", flush=True)

    output = schedule.eval(test_x, target=test_y)
    if stage.is_last and arguments.net == "mnist":
        print(f"test error {100 * (output.argmax(1) != test_y).float().mean().item():.2f} %", flush=True)
    elif stage.is_last:
        print(f"test {loss_fn(output, test_y).item() / math.log(2):.3f} bits a character", flush=True)
    print(f"rank {rank}:", {name: round(value, 3) for name, value in schedule.metrics().items()}, flush=True)
    schedule.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
