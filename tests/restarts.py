"""Two processes with a stage each, which start again when one is killed: `python tests/restarts.py FOLDER`.

It is as `torchrun --max-restarts 3`, without the start of new interpreters. FOLDER/killed and FOLDER/through have the
checkpoints of a run with kills and of one without, and the last weights of each rank.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from in_pipeline import optimizer_of
from in_stages import X, Y, loss_of, made
from torch import distributed
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from dni_fx.pipeline import ScheduleDecoupled, load, save, stages

STEPS = 6
STAGES = stages(made("linear"))  # before the processes are forked


def kill(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def train(folder: Path, is_killed: bool) -> None:
    """Train a stage. The first time rank 1 is killed in a step, the second time rank 0 in a checkpoint."""
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    attempt = os.environ["TORCHELASTIC_RESTART_COUNT"] if is_killed else ""
    stage = STAGES[rank]
    schedule = ScheduleDecoupled(stage, 2, loss_of, optimizer=optimizer_of(stage), sync=True)
    begun = load(folder, schedule)
    (folder / f"begun.{attempt}.{rank}").write_text(str(begun))
    for step in range(begun, STEPS):
        if (attempt, rank, step) == ("0", 1, 3):
            kill()
        if (attempt, rank, step) == ("1", 0, 3):
            FileSystemWriter.finish = kill  # type: ignore[method-assign]
        schedule.step(X + step, target=Y)
        if step % 2 == 1:
            save(folder, schedule)
    schedule.close()
    torch.save(stage.state_dict(), folder / f"{rank}.pt")
    distributed.destroy_process_group()


def main(folder: Path) -> None:
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    options: dict[str, Any] = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "start_method": "fork"}
    config = LaunchConfig(1, 1, 2, max_restarts=3, monitor_interval=0.05, **options)
    for name in ("through", "killed"):
        (folder / name).mkdir()
        elastic_launch(config, train)(folder / name, name == "killed")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
