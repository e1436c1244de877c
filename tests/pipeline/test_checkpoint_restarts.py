"""Processes that torchrun starts again when one is killed go on from the last complete checkpoint."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "restarts.py"


@pytest.mark.slow
def test_kills_lose_nothing(tmp_path: Path) -> None:
    """One in a step, and one in a checkpoint, which then does not count."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(tmp_path)]
    process = subprocess.run(command, env=environment, timeout=120, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-6000:]
    for rank in range(2):
        begun = [(tmp_path / "killed" / f"begun.{attempt}.{rank}").read_text() for attempt in range(3)]
        assert begun == ["0", "2", "2"]
        through, killed = (torch.load(tmp_path / name / f"{rank}.pt") for name in ("through", "killed"))
        assert all(torch.equal(value, killed[key]) for key, value in through.items())
