"""Checkpoints: the last complete one counts, and what is none of this model is refused. Runs: see test_schedule.py."""

from pathlib import Path
from typing import Any

import pytest
import torch
from in_pipeline import loss_of, optimizer_of
from in_stages import X, made
from nets import NormedResidual

import dni_fx
from dni_fx import DniFxError
from dni_fx.pipeline import ScheduleDecoupled, checkpoint, latest, load, save, stages


def schedule_of(name: str = "linear", index: int = 0) -> ScheduleDecoupled:
    stage = stages(made(name))[index]
    return ScheduleDecoupled(stage, 2, loss_of, optimizer=optimizer_of(stage))


def test_an_interrupted_checkpoint_does_not_count(tmp_path: Path) -> None:
    schedule = schedule_of()
    assert latest(tmp_path) is None and load(tmp_path, schedule) == 0
    for schedule.steps in (9, 10, 100):
        save(tmp_path, schedule)
    (tmp_path / "step-000100" / ".metadata").unlink()
    (tmp_path / "step-000200").mkdir()
    assert latest(tmp_path) == tmp_path / "step-000010"
    assert load(tmp_path, schedule_of()) == 10
    schedule.steps = 300
    save(tmp_path, schedule)
    assert not (tmp_path / "step-000009").exists() and (tmp_path / "step-000010").exists()


def test_a_checkpoint_of_another_run_is_not_deleted(tmp_path: Path) -> None:
    schedule = schedule_of()
    schedule.steps = 10
    save(tmp_path, schedule)
    schedule.steps = 9
    with pytest.raises(DniFxError, match=r"step-000010 is there, of a run with more steps: load it first"):
        save(tmp_path, schedule)
    assert latest(tmp_path) == tmp_path / "step-000010"


def test_the_same_step_again_replaces_it_when_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = schedule_of()
    path = save(tmp_path, schedule)

    before = (path / ".metadata").stat().st_ino

    def fails(*_: Any, **__: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(checkpoint.FileSystemWriter, "finish", fails)
    with pytest.raises(DniFxError, match="the disk is full"):
        save(tmp_path, schedule)
    monkeypatch.undo()
    assert latest(tmp_path) == path and load(tmp_path, schedule_of()) == 0
    assert (path / ".metadata").stat().st_ino == before
    assert save(tmp_path, schedule) == latest(tmp_path) == path
    assert (path / ".metadata").stat().st_ino != before and len([*tmp_path.iterdir()]) == 1


def test_each_entry_is_written_by_the_last_stage_that_has_it() -> None:
    """Also the running means of a layer that an exit uses."""
    layers = [*(NormedResidual() for _ in range(3)), torch.nn.BatchNorm1d(8)]
    options = {"synthesizer": "exit(units=0)", "loss": "cross_entropy", "verify": False}
    net = dni_fx.transform(torch.nn.Sequential(*layers, torch.nn.Linear(8, 3)), X[:, 0], cuts=["0", "1"], **options)
    found = stages(net.train())
    written = [checkpoint._own(stage) for stage in found]
    assert "3.running_mean" in found[0].state_dict() and "3.running_mean" not in written[0]
    assert sum(map(len, written)) == len(net.state_dict())
    assert {name for own in written for name in own} == net.state_dict().keys()


def test_what_cannot_be_read(tmp_path: Path) -> None:
    save(tmp_path, schedule_of())
    other = dni_fx.transform(
        torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 3)), X[:, 0], cuts=["0"], synthesizer="linear"
    )
    stage = stages(other)[0]
    with pytest.raises(DniFxError, match=r"is of another model: it has no 0\.weight"):
        load(tmp_path, ScheduleDecoupled(stage, 2, optimizer=optimizer_of(stage)))
    with pytest.raises(DniFxError, match=r"is of other cuts or synthesizers: it has no dni\.cut0_add_1"):
        load(tmp_path, schedule_of("labels"))
    schedule = schedule_of()
    schedule.stage.cuts_name = "cut0_add_1 by zero"
    with pytest.raises(DniFxError, match="has the cuts cut0_add_1 by linear, and this run has cut0_add_1 by zero"):
        load(tmp_path, schedule)
    schedule = schedule_of()
    schedule.optimizer = torch.optim.Adam(schedule.stage.parameters())
    with pytest.raises(DniFxError, match="has the optimizer SGD, and this run has Adam"):
        load(tmp_path, schedule)
    (tmp_path / "step-000000" / ".metadata").write_bytes(b"no pickle")
    with pytest.raises(DniFxError, match=r"cannot read the checkpoint .*step-000000"):
        load(tmp_path, schedule_of())
    with pytest.raises(DniFxError, match="is a file; a folder of checkpoints is needed"):
        save(tmp_path / "step-000000" / ".metadata", schedule_of())


def test_an_optimizer_of_other_parameters(tmp_path: Path) -> None:
    schedule = schedule_of()
    schedule.optimizer = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), 0.1)
    with pytest.raises(DniFxError, match="the optimizer has parameters that are not of the stage"):
        save(tmp_path, schedule)
