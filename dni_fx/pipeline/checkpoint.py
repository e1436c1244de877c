"""Checkpoints of a pipeline, by torch.distributed.checkpoint: each process writes its part, and any other reads it.

A folder has a folder for each checkpoint. One without the file `.metadata`, which is written last, is not complete.
"""

import contextlib
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed
from torch.distributed.checkpoint.storage import WriteResult

from dni_fx.errors import DniFxError, first_line
from dni_fx.model import is_shard, meshes_in
from dni_fx.pipeline.replicas import place_among_replicas
from dni_fx.pipeline.schedule import ScheduleDecoupled
from dni_fx.pipeline.stage import Stage
from dni_fx.runtime import Crossing
from dni_fx.store import random_state, set_random_state

__all__ = ["latest", "load", "save"]

_KEPT = 2  # complete checkpoints that stay
_NAME = re.compile(r"step-(\d+)")


def save(folder: str | Path, schedule: ScheduleDecoupled) -> Path:
    """Write a checkpoint after a step, in all processes of the pipeline; the older ones but for one are deleted.

    Weights, the optimizer's state and the random states are in it. Gradients on their way to synthesizers are not.
    With replicas, the first pipeline writes; with stages that `fully_shard` has split, all processes of torchrun do.

    Returns:
        Its folder, `step-000100` after 100 steps.

    Raises:
        DniFxError: If it cannot be written, or the folder has a checkpoint of more steps, of another run.
        PeerError: If another process is gone.
    """
    path = Path(folder) / f"step-{schedule.steps:06}"
    if _is_copy(schedule):
        return path
    with _all_stop(schedule):
        return _save(path, schedule)


@contextlib.contextmanager
def _all_stop(schedule: ScheduleDecoupled) -> Iterator[None]:
    """An error in one process stops all, which else would wait for it."""
    try:
        yield
    except RuntimeError as error:
        raise schedule.lost(error) from None
    except BaseException as error:
        schedule.stop(error)
        raise


def _save(path: Path, schedule: ScheduleDecoupled) -> Path:
    folder, stage = path.parent, schedule.stage
    _check_folder(folder, schedule)
    last = latest(folder)
    if last is not None and _steps(last) > schedule.steps:
        raise DniFxError(f"{last} is there, of a run with more steps: load it first, or save to another folder")
    is_first = stage.index == 0 and not any(place_among_replicas(stage))
    values: dict[str, Any] = {f"model.{name}": value for name, value in _own(stage).items()}
    values |= _optimizer_state(schedule)
    values |= {f"progress.{name}": crossing.progress() for name, crossing in _crossings(stage).items()}
    values[_own_key(stage)] = {
        "random": random_state(),
        "counts": (schedule.steps, schedule.updates, schedule.microbatches),
        "cuts": stage.cuts_name,
        "optimizer": _optimizer_name(schedule),
    }
    if is_first:
        shutil.rmtree(_unfinished(path), ignore_errors=True)
    planner = DefaultSavePlanner(flatten_state_dict=False)
    try:
        with _alone():
            save_distributed(values, storage_writer=_Writer(path), planner=planner, **_within(schedule))
    except (OSError, CheckpointException) as error:
        raise DniFxError(f"cannot write the checkpoint {path}: {_reason(error)}") from None
    if is_first:
        for old in _complete(folder)[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)
    return path


class _Writer(FileSystemWriter):
    """Writes to a folder beside `path`, which takes its place when all is written, also if it is there already."""

    def __init__(self, path: Path) -> None:
        super().__init__(_unfinished(path))
        self._end = path

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        super().finish(metadata, results)
        old = self._end.with_suffix(".old")
        shutil.rmtree(old, ignore_errors=True)
        if self._end.exists():
            self._end.rename(old)
        _unfinished(self._end).rename(self._end)
        shutil.rmtree(old, ignore_errors=True)


def _unfinished(path: Path) -> Path:
    return path.with_suffix(".new")


def latest(folder: str | Path) -> Path | None:
    """The last complete checkpoint in a folder; None: there is none."""
    return next(reversed(_complete(Path(folder))), None)


def load(folder: str | Path, schedule: ScheduleDecoupled) -> int:
    """Continue from the last complete checkpoint in a folder, also one of another number of stages.

    Returns:
        The number of steps that are done; 0: there is no checkpoint.

    Raises:
        DniFxError: If the checkpoint is of another model, or cannot be read.
        PeerError: If another process is gone.
    """
    if dist.is_initialized():
        schedule.connect()
    with _all_stop(schedule):
        _check_folder(Path(folder), schedule)
        path = latest(folder)
        return 0 if path is None else _load(path, schedule)


def _load(path: Path, schedule: ScheduleDecoupled) -> int:
    stage = schedule.stage
    try:
        there = FileSystemReader(path).read_metadata().state_dict_metadata
    except Exception as error:  # a damaged pickle may raise any error
        raise DniFxError(_damaged(path, error)) from None
    model = {f"model.{name}": value for name, value in stage.state_dict().items()}
    if missing := [name.removeprefix("model.") for name in model if name not in there]:
        what = "other cuts or synthesizers" if missing[0].startswith("dni.") else "another model"
        raise DniFxError(f"the checkpoint {path} is of {what}: it has no {missing[0]}")
    own = _own_key(stage)
    first = next(key for key in there if key.startswith("stage."))
    wanted = dict(stage.named_parameters())
    values: dict[str, Any] = dict(model)
    for key, data in there.items():
        parameter = wanted.get(key.split("/")[0].removeprefix("optimizer."))
        of_optimizer = key.startswith("optimizer.") and parameter is not None
        of_progress = key.startswith("progress.") and key.removeprefix("progress.") in _crossings(stage)
        if of_optimizer or of_progress or key in (own, first):
            values[key] = None
            if isinstance(data, TensorStorageMetadata):
                values[key] = _empty(data, parameter)
    try:
        with _alone():
            load_distributed(values, checkpoint_id=path, planner=_load_planner(), **_within(schedule))
    except RuntimeError:
        raise
    except (Exception, CheckpointException) as error:  # a damaged file may raise any error
        raise DniFxError(_damaged(path, error)) from None
    found = values.get(own) or values[first]
    for what, value in (("cuts", stage.cuts_name), ("optimizer", _optimizer_name(schedule))):
        if found[what] != value and value is not None:
            raise DniFxError(f"the checkpoint {path} has the {what} {found[what]}, and this run has {value}")
    _restore(schedule, values, found, exactly=own in there and not _is_copy(schedule))
    return schedule.steps


def _check_folder(folder: Path, schedule: ScheduleDecoupled) -> None:
    """Raise a DniFxError if it is a file, or other processes have another one, or another checkpoint in it."""
    if folder.exists() and not folder.is_dir():
        raise DniFxError(f"{folder} is a file; a folder of checkpoints is needed")
    if not dist.is_initialized():
        return
    last = latest(folder)
    found: list[Any] = [None] * dist.get_world_size(schedule.group)
    dist.all_gather_object(found, f"{folder}{f' with {last.name}' if last else ''}", group=schedule.group)
    if len({*found}) > 1:
        raise DniFxError(f"the processes have other checkpoints: {', '.join(sorted({*found}))}")


def _damaged(path: Path, error: BaseException) -> str:
    return f"cannot read the checkpoint {path}: {_reason(error)}. Delete it to go on from the one before"


def _reason(error: BaseException) -> str:
    """The first line of an error, or of the first one of those that a CheckpointException holds."""
    while isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return f"{type(error).__name__}: {first_line(error)}"


def _optimizer_name(schedule: ScheduleDecoupled) -> str | None:
    return None if schedule.optimizer is None else type(schedule.optimizer).__name__


def _restore(schedule: ScheduleDecoupled, values: Mapping[str, Any], stage: Mapping[str, Any], exactly: bool) -> None:
    for name, crossing in _crossings(schedule.stage).items():
        if (progress := values.get(f"progress.{name}")) is not None:
            crossing.resume(progress)
    schedule.steps, schedule.updates, schedule.microbatches = stage["counts"]
    if exactly:  # the random numbers of as many processes
        set_random_state(stage["random"])
    optimizer, names = schedule.optimizer, {p: name for name, p in schedule.stage.named_parameters()}
    for group in () if optimizer is None else optimizer.param_groups:
        for parameter in group["params"]:
            prefix = f"optimizer.{names[parameter]}/"
            found = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
            group |= found.pop("group", {})
            if found and optimizer is not None:
                optimizer.state[parameter] = {
                    key: value.to(parameter.device) if isinstance(value, Tensor) and value.dim() else value
                    for key, value in found.items()
                }


def _own_key(stage: Stage) -> str:
    """The name of what only this process has; of a stage that is split, one of its replicas."""
    place = place_among_replicas(stage)
    return ".".join(map(str, ("stage", stage.count, stage.index, *(place if any(place) else ()))))


def _empty(data: TensorStorageMetadata, parameter: nn.Parameter | None) -> Tensor:
    """A tensor to read into; a shard, where it is one of the same shape as a parameter that is split."""
    dtype = data.properties.dtype
    if parameter is not None and is_shard(parameter) and data.size == parameter.shape:
        return torch.empty_like(parameter.detach(), dtype=dtype)
    return torch.empty(data.size, dtype=dtype)


def _is_copy(schedule: ScheduleDecoupled) -> bool:
    return schedule.replicas is not None and dist.get_rank(schedule.replicas) > 0


def _own(stage: Stage) -> dict[str, Tensor]:
    """The entries of the state_dict that no later stage has by the same name: an exit has old values of those."""
    return {name: value for name, value in stage.state_dict().items() if name not in stage.of_later}


def _optimizer_state(schedule: ScheduleDecoupled) -> dict[str, Any]:
    """The state and the settings of the optimizer, for each parameter by its name."""
    found: dict[str, Any] = {}
    names: dict[nn.Parameter, str] = {p: name for name, p in schedule.stage.named_parameters()}
    own = _own(schedule.stage)
    for group in () if schedule.optimizer is None else schedule.optimizer.param_groups:
        settings = {key: value for key, value in group.items() if key != "params"}
        for parameter in group["params"]:
            name = names.get(parameter)
            if name is None:
                raise DniFxError("the optimizer has parameters that are not of the stage")
            if name in own:
                state = schedule.optimizer.state.get(parameter, {}) if schedule.optimizer is not None else {}
                found |= {f"optimizer.{name}/{key}": value for key, value in state.items()}
                found[f"optimizer.{name}/group"] = settings
    return found


def _crossings(stage: Stage) -> dict[str, Crossing]:
    return {name: module for name, module in stage.named_modules() if isinstance(module, Crossing)}


def _complete(folder: Path) -> list[Path]:
    """The complete checkpoints, by their number of steps."""
    there = folder.iterdir() if folder.is_dir() else ()
    return sorted(
        (path for path in there if _NAME.fullmatch(path.name) and (path / ".metadata").is_file()),
        key=_steps,
    )


def _steps(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _load_planner() -> DefaultLoadPlanner:
    # With either, the planner fills a copy of the values, and those that are no tensors are lost.
    return DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """A process may read or write a checkpoint without others."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
        yield


def _within(schedule: ScheduleDecoupled) -> dict[str, Any]:
    group = None if meshes_in(schedule.stage) else schedule.group  # else all replicas have parts of it
    return {"process_group": group, "no_dist": not dist.is_initialized()}
