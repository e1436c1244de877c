"""Run a function in two processes of one group."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing


def in_two_processes(function: Callable[[int], Any], folder: Path) -> list[Any]:
    """What `function` returns for the ranks 0 and 1. A process imports it by its name."""
    multiprocessing.spawn(_process, (function, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def _process(rank: int, function: Callable[[int], Any], folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(function(rank), Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()
