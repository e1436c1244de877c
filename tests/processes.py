"""Run a function in two processes of one group."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import distributed, multiprocessing

# Imported once for all processes.
PRELOADED = ["dni_fx.pipeline", "torch.distributed.fsdp", "torch.distributed.pipelining"]


def in_processes(function: Callable[[int], Any], folder: Path, count: int = 2) -> list[Any]:
    """What `function` returns for the ranks 0 and 1, or for more, in `folder`. A process imports it by its name.

    It runs once: workers of pytest-xdist that have tests of one file share the results.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent.parent / f"{function.__module__}.{function.__qualname__}"
    folder.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            multiprocessing.set_forkserver_preload(PRELOADED)
            arguments = (function, str(folder), count)
            multiprocessing.start_processes(_process, arguments, nprocs=count, start_method="forkserver")
            (folder / "done").touch()
    return [torch.load(folder / f"{rank}.pt") for rank in range(count)]


def _process(rank: int, function: Callable[[int], Any], folder: str, count: int) -> None:
    os.chdir(folder)
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
    torch.save(function(rank), Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()
