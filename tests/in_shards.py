"""What two processes with shards of a net and half of the batch each, and one with all of both, train."""

from collections.abc import Callable
from typing import Any

import torch
from nets import NormedResidual
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

import dni_fx
from dni_fx import SegmentOptimizer

X = torch.rand(16, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % 3


class Model(nn.Module):
    """Layers in front of the blocks and behind them, as language models have."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.blocks = nn.ModuleList(NormedResidual() for _ in range(4))
        self.position = nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x + self.position)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Holder(nn.Module):
    """Holds a rewritten net."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.net(*args, **kwargs)


def by_block(model: Any) -> None:
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)


# What splits: the model before the rewrite; the net after it.
PLACES: dict[str, tuple[Callable[[Any], Any] | None, Callable[[Any], Any] | None]] = {
    "the net": (None, fully_shard),
    "a holder of the net": (None, lambda net: fully_shard(Holder(net))),
    "segments": (None, dni_fx.shard_segments),
    "blocks": (None, by_block),
    "the model": (fully_shard, None),
    "blocks of the model": (by_block, None),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "backward": {},
    "none": {"unlock": "none"},
    "stepping": {"step": "segment"},
    "stepping, none": {"step": "segment", "unlock": "none"},
    "accumulated": {"accumulate": 2},
    "accumulated, stepping": {"step": "segment", "accumulate": 2},
    "a batch is skipped": {},
    "a batch is skipped, stepping": {"step": "segment"},
    "exit": {"synthesizer": "exit", "loss": "cross_entropy"},
    "exit, stepping": {"synthesizer": "exit", "loss": "cross_entropy", "step": "segment"},
}
CASES = [
    (place, name)
    for place in PLACES
    for name in OPTIONS
    if place in ("the net", "segments")
    or name in ("backward", "stepping", "accumulated")
    or (place, name) == ("a holder of the net", "exit, stepping")
]  # exits run layers of which a process must not have shards


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1)


def trained(place: str, name: str, rows: slice, split: bool) -> dict[str, Tensor]:
    """The weights after four batches."""
    options: dict[str, Any] = {"synthesizer": "linear", "frontend": "modules" if "blocks" in place else "fx"}
    options |= OPTIONS[name] | ({"optimizer": sgd} if "step" in OPTIONS[name] else {})
    before, after = PLACES[place] if split else (None, None)
    # The comparisons of the capture are the same for all names; they choose the front end of a model that is split.
    options["verify"] = name == "backward" or before is not None
    torch.manual_seed(0)
    model = Model()
    if before is not None:
        before(model)
        options.pop("frontend")
    net: Any = dni_fx.transform(model, X[:8], cuts=["blocks.0", "blocks.2"], **options).train()
    runner = net
    if after is not None:
        runner = after(net) or net
        if "step" in options:
            SegmentOptimizer(net, sgd, accumulate=options.get("accumulate"))
    optimizer = net.dni.optimizer or sgd(net.parameters())
    accumulates = options.get("accumulate", 1)
    context = {"dni_context": Y[rows]} if "loss" in options else {}
    for k in range(4):
        if k % accumulates == 0 or "step" in options:
            optimizer.zero_grad()
        loss = nn.functional.cross_entropy(runner(X[rows].roll(k, 1), **context), Y[rows]) / accumulates
        if "skipped" in name and k == 1:
            continue
        loss.backward()
        if (k + 1) % accumulates == 0:
            optimizer.step()
    return {key: p.full_tensor() if hasattr(p, "full_tensor") else p.data for key, p in net.named_parameters()}


def process(rank: int) -> dict[tuple[str, str], dict[str, Tensor]]:
    rows = slice(8 * rank, 8 * (rank + 1))
    return {case: trained(*case, rows, split=True) for case in CASES}
