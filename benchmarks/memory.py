"""Memory and time of a training step on nets of every kind: backprop, checkpointing and the like, and dni-fx.

Run:  python benchmarks/memory.py                    writes benchmarks/results/memory.md, .json and .png
      python benchmarks/memory.py --nets resnet110   some of them; their sections are replaced
One thread. Memory is exact: all live tensors after every operation, less parameters, optimizer state and batch.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from dni_fx.bench.measure import measure
from dni_fx.bench.options import Options, segments
from dni_fx.bench.table import bench_table, plot, to_dict
from dni_fx.model.inputs import to_inputs

RESULTS = Path(__file__).parent / "results"
sys.path.append(str(Path(__file__).parents[1] / "examples"))


class Block(nn.Module):
    """A pre-norm transformer block with causal attention, d 128, 4 heads, ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(128), nn.LayerNorm(128)
        self.qkv, self.out = nn.Linear(128, 384), nn.Linear(128, 128)
        self.mlp = nn.Sequential(nn.Linear(128, 512), nn.ReLU(), nn.Linear(512, 128))

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens, width = x.shape
        q, k, v = self.qkv(self.first(x)).view(rows, tokens, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, tokens, width))
        return x + self.mlp(self.second(x))


class Transformer(nn.Module):
    """16 blocks, characters in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(64, 128), nn.Linear(128, 64)
        self.blocks = nn.Sequential(*[Block() for _ in range(16)])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embedding(x)))


class Basic(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(n_out), nn.BatchNorm2d(n_out)
        self.shortcut = (
            nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))
            if stride > 1 or n_in != n_out
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(h)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and a shortcut."""

    def __init__(self, n_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(n_in, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.norm2, self.norm3 = nn.BatchNorm2d(width), nn.BatchNorm2d(4 * width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.shortcut = (
            nn.Sequential(nn.Conv2d(n_in, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width))
            if stride > 1 or n_in != 4 * width
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm1(self.conv1(x)))
        h = torch.relu(self.norm2(self.conv2(h)))
        return torch.relu(self.norm3(self.conv3(h)) + self.shortcut(x))


def resnet110() -> nn.Module:
    """For 32x32 images: 3 x 18 basic blocks of 16, 32 and 64 channels (He et al. 2016, Sect. 4.2)."""
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    sizes = [(16, 16, 1)] * 18 + [(16, 32, 2)] + [(32, 32, 1)] * 17 + [(32, 64, 2)] + [(64, 64, 1)] * 17
    return nn.Sequential(
        stem, nn.Sequential(*[Basic(*size) for size in sizes]), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
    )


def resnet50() -> nn.Module:
    """With the stem for large images (He et al. 2016, table 1)."""
    stem = nn.Sequential(
        nn.Conv2d(3, 64, 7, 2, padding=3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    )
    blocks, n_in = [], 64
    for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for i in range(count):
            blocks.append(Bottleneck(n_in, width, stride if i == 0 else 1))
            n_in = 4 * width
    return nn.Sequential(stem, nn.Sequential(*blocks), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


class Recurrent(nn.Module):
    """Four LSTM layers over characters."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(64, 256), nn.Linear(256, 64)
        self.layers = nn.ModuleList([nn.LSTM(256, 256, batch_first=True) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x)
        for layer in self.layers:
            h, _ = layer(h)
        return self.head(h)


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(use_cache=False))


def unet() -> nn.Module:
    import unet as example

    return example.build_model()


def tokens(rows: int, length: int, vocabulary: int) -> Tensor:
    return torch.randint(0, vocabulary, (rows, length))


def equal(prefix: str, blocks: int, *counts: int) -> dict[str, Any]:
    """Cuts into segments of equally many blocks."""
    return {f"{k} segments": [f"{prefix}.{blocks * i // k - 1}" for i in range(1, k)] for k in counts}


@dataclass(frozen=True)
class Net:
    """A net to measure."""

    title: str
    build: Callable[[], nn.Module]
    example: Callable[[], Any]
    cuts: dict[str, Any]
    synthesizer: str = "auto"
    next_token: bool = False


NETS = {
    "transformer": Net(
        "16-block transformer, d 128, 8x128 tokens",
        Transformer,
        lambda: tokens(8, 128, 64),
        equal("blocks", 16, 2, 4, 8, 16) | segments("auto"),
        "linear",
        True,
    ),
    "resnet110": Net(
        "ResNet-110, 32 images 32x32", resnet110, lambda: torch.rand(32, 3, 32, 32), segments(2, 4, 8, "auto")
    ),
    "resnet50": Net(
        "ResNet-50, 8 images 224x224", resnet50, lambda: torch.rand(8, 3, 224, 224), segments(2, 4, 8, "auto")
    ),
    "unet": Net("examples/unet.py", unet, lambda: torch.rand(16, 1, 32, 32), segments(2, 4, "auto")),
    "lstm": Net("4-layer LSTM, 256 wide, 16x64 tokens", Recurrent, lambda: tokens(16, 64, 64), segments(2, 4, "auto")),
    "gpt2": Net("GPT-2 small, 2x128 tokens", gpt2, lambda: tokens(2, 128, 50257), segments(2, 4, "auto")),
}


def cross_entropy(output: Any) -> Tensor:
    """Cross-entropy with arbitrary labels."""
    logits = getattr(output, "logits", output)
    rows = logits.flatten(0, -2)
    return nn.functional.cross_entropy(rows, torch.arange(len(rows), device=rows.device) % rows.shape[1])


def run(name: str, steps: int, device: str = "cpu") -> dict[str, Any]:
    net = NETS[name]
    torch.manual_seed(0)
    model = net.build().to(device)
    example = net.example().to(device)
    options = Options(cuts=net.cuts, steps=steps, synthesizer=net.synthesizer, loss=cross_entropy)
    with Progress(TextColumn("{task.description}"), TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(name)
        ways = measure(
            model, to_inputs(example, None), options, lambda way: progress.update(task, description=f"{name}: {way}")
        )
        rows = list(ways)
    plot(rows, RESULTS / f"{'gpu' if device == 'cuda' else 'memory'}_{name}.png")
    console = Console(width=100)
    console.print(net.title)
    console.print(bench_table(rows))
    with console.capture() as captured:
        console.print(bench_table(rows))
    return {
        "title": net.title,
        "steps": steps,
        "torch": torch.__version__,
        "table": captured.get(),
        "rows": [to_dict(row) for row in rows],
    }


def report(found: dict[str, Any]) -> str:
    lines = [
        "# Memory and time of a training step",
        "",
        "`python benchmarks/memory.py`, one thread, CPU. Adam; cross-entropy; time beside backprop's, in turn.",
        '`stepping` is `step="segment"`; `compiler, half` the partitioner of torch.compile with',
        "`activation_memory_budget=0.5`, run with eager kernels.",
        "",
    ]
    for name in (name for name in NETS if name in found):
        section = found[name]
        lines += [f"## {section['title']}", "", f"torch {section['torch']}, {section['steps']} steps of each.", ""]
        lines += ["```", section["table"].rstrip(), "```", ""]
        lines += [
            f"`python benchmarks/memory.py --nets {name}` draws the memory over the step: `memory_{name}.png`.",
            "",
        ]
    notes = RESULTS / "memory.notes.md"
    return "\n".join(lines) + (notes.read_text() if notes.is_file() else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="*", default=list(NETS), choices=list(NETS))
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / "memory.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    for name in arguments.nets:
        try:
            found[name] = run(name, arguments.steps)
        except ModuleNotFoundError as error:
            print(f"{name}: skipped, {error}", file=sys.stderr)
            continue
        path.write_text(json.dumps(found, indent=1) + "\n")
        (RESULTS / "memory.md").write_text(report(found))


if __name__ == "__main__":
    main()
