"""What the processes of a pipeline train, and one process with the whole net. A process imports it by its name."""

import time
from pathlib import Path
from typing import Any

import torch
from in_stages import X, Y, loss_of, made
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from dni_fx import DniFxError
from dni_fx.pipeline import ScheduleDecoupled, load, save, stages
from dni_fx.pipeline.batch import Batch
from dni_fx.pipeline.stage import Stage
from dni_fx.pipeline.targets import Targets

NAMES = ("linear", "labels", "tail", "unit")
MICROBATCHES = 4
STEPS = 3
SYNCED = (*((name, 2) for name in NAMES), ("linear", 3), ("tail", 3))
# Name, segments, how: see `replicated`.
REPLICATED = (("linear", 2, "averaged"), ("linear", 3, "split"), ("unit", 2, "split"))


def optimizer_of(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)


def weights(stage: nn.Module) -> dict[str, Tensor]:
    """The state_dict, with whole parameters."""
    return {key: v.full_tensor() if hasattr(v, "full_tensor") else v for key, v in stage.state_dict().items()}


def trained(name: str, segments: int) -> dict[str, Tensor]:
    """The weights of the net after steps in one process."""
    net = made(name, segments)
    net.dni.scale_with(accumulate=1)
    optimizer = optimizer_of(net)
    for _ in range(STEPS):
        for x, y in zip(X.chunk(MICROBATCHES), Y.chunk(MICROBATCHES), strict=True):
            loss_of(net(x, **({"dni_context": y} if net.dni_takes_context() else {})), y).backward()
        for parameter in net.parameters():
            if parameter.grad is not None:
                parameter.grad /= MICROBATCHES
        optimizer.step()
        optimizer.zero_grad()
    return dict(net.state_dict())


def in_sync(group: Any, name: str, segments: int, count: int) -> dict[str, Tensor]:
    """The weights of one stage after the same steps."""
    stage = stages(made(name, segments), count)[distributed.get_rank(group)]
    schedule = ScheduleDecoupled(stage, MICROBATCHES, loss_of, optimizer=optimizer_of(stage), sync=True, group=group)
    for _ in range(STEPS):
        schedule.step(X, target=Y)
    schedule.close()
    return dict(stage.state_dict())


def synced(group: Any) -> dict[str, Any]:
    return {f"{name} {segments}": in_sync(group, name, segments, 2) for name, segments in SYNCED}


def one_by_one(name: str, segments: int) -> dict[str, Tensor]:
    """The weights after each stage has trained on each microbatch, in one process, without targets from above."""
    found = stages(made(name, segments))
    optimizers = [optimizer_of(stage) for stage in found]
    targets = [Targets(stage, sync=False, most=1) for stage in found]
    for _ in range(STEPS + 1):
        for x, y in zip(X.chunk(MICROBATCHES), Y.chunk(MICROBATCHES), strict=True):
            values = [x, y]
            for stage, optimizer, later in zip(found, optimizers, targets, strict=True):
                batch = Batch(stage, 1, [x], y, {}, loss_of)
                batch.given = [value.detach() for value in values]
                with later.coming_later():
                    batch.run(0, lambda values: None, learns_below=False)
                values = list(batch.passed)
                optimizer.step()
                optimizer.zero_grad()
    joined = {}
    for stage in found:
        joined |= stage.state_dict()
    return joined


def unsynced(group: Any, name: str, segments: int = 2) -> dict[str, Any]:
    """The weights of one stage that waits for none above it, and the metrics."""
    stage = stages(made(name, segments))[distributed.get_rank(group)]
    schedule = ScheduleDecoupled(stage, MICROBATCHES, loss_of, optimizer=optimizer_of(stage), group=group)
    losses: list[Tensor] = []
    for _ in range(STEPS):
        outputs = schedule.step(X, target=Y, losses=losses)
    evaluated = schedule.eval(X, target=Y)
    distributed.barrier(group)  # gradients on the way come in the next step
    schedule.step(X, target=Y)
    metrics = schedule.metrics()
    schedule.close()
    sizes = [None if value is None else len(value) for value in (outputs, evaluated)]
    return {"losses": len(losses), "sizes": sizes, "metrics": metrics} | dict(stage.state_dict())


def resumed(group: Any, name: str, folder: str, replicas: DeviceMesh | None = None) -> dict[str, Any]:
    """The weights after a run, and after one that is stopped in the middle and goes on in new objects.

    Args:
        replicas: The stage is split over them.
    """
    options: dict[str, Any] = {"sync": name in ("linear", "unit"), "group": group}
    found, state = [], torch.get_rng_state()
    for stops in (False, True):
        for part in range(2):
            if part == 0 or stops:
                stage = stages(made(name, 3), 2)[distributed.get_rank(group)]
                if replicas is not None:
                    fully_shard(stage, mesh=replicas)
                schedule = ScheduleDecoupled(stage, MICROBATCHES, loss_of, optimizer=optimizer_of(stage), **options)
            if part == 1 and stops:
                assert load(folder, schedule) == STEPS
                assert torch.equal(torch.get_rng_state(), state)
            for _ in range(STEPS):
                schedule.step(X, target=Y)
            if stops:
                torch.manual_seed(distributed.get_rank())  # replicas have random numbers of their own
                state = torch.get_rng_state()
                save(folder, schedule)
                schedule.close()
        schedule.close()
        found.append(weights(stage))
    states = {} if schedule.optimizer is None or replicas is not None else schedule.optimizer.state
    momentum = {name: states[p]["momentum_buffer"] for name, p in stage.named_parameters() if p in states}
    return {"through": found[0], "stopped": found[1], "momentum": momentum}


def slow(group: Any) -> list[float]:
    """When the first of two stages has passed each microbatch on, and when the second one, a slow one, begins it."""
    rank = distributed.get_rank(group)
    stage = stages(made("unit"))[rank]
    schedule = ScheduleDecoupled(stage, 1, loss_of, optimizer=optimizer_of(stage), group=group, timeout=5.0)
    times = []

    def begin(*_: Any) -> None:
        times.append(time.monotonic())
        time.sleep(0.02)

    if rank == 1:
        stage.register_forward_pre_hook(begin)
    for _ in range(30):
        schedule.step(X, target=Y)
        if rank == 0:
            times.append(time.monotonic())
    schedule.close()
    return times


def refused(group: Any) -> str:
    """The error of two processes that do not fit together."""
    rank = distributed.get_rank(group)
    stage = stages(made("linear"))[rank]
    try:
        ScheduleDecoupled(stage, 2 + rank, loss_of, optimizer=optimizer_of(stage), group=group).step(X, target=Y)
    except DniFxError as error:
        return str(error)
    return ""


def replicated(
    mesh: DeviceMesh, name: str, segments: int, how: str, steps: int = STEPS, **options: Any
) -> tuple[Stage, ScheduleDecoupled]:
    """One stage of two pipelines, each of which trains on half of the microbatches.

    Args:
        how: The replicas of a stage are "averaged" or "split"; or all of it is, but for late parameters.
        options: Of the schedule.
    """
    replica, group = mesh.get_local_rank("replica"), mesh["stage"].get_group()
    net = made(name, segments)
    stage = stages(net, 2)[distributed.get_rank(group)]
    if how == "averaged":
        with torch.no_grad():
            for parameter in net.parameters() if replica else ():
                parameter.zero_()  # the first replica's weights count
        options["replicas"] = mesh["replica"].get_group()
    else:
        fully_shard(stage, mesh=mesh["replica"], ignored_params=stage.late_parameters if "but" in how else None)
    schedule = ScheduleDecoupled(
        stage, MICROBATCHES // 2, loss_of, optimizer=optimizer_of(stage), group=group, **options
    )
    for _ in range(steps):
        schedule.step(X.chunk(2)[replica], target=Y.chunk(2)[replica])
    return stage, schedule


def in_sync_replicated(mesh: DeviceMesh, *args: Any) -> dict[str, Tensor]:
    """The weights after synchronous steps."""
    stage, schedule = replicated(mesh, *args, sync=True)
    schedule.close()
    return weights(stage)


def unsynced_replicated(mesh: DeviceMesh, name: str, how: str) -> dict[str, Any]:
    """The weights after steps without sync, an evaluation in between; and the metrics."""
    stage, schedule = replicated(mesh, name, 3, how)
    schedule.eval(X, target=Y)
    distributed.barrier()  # gradients on the way come in the next step
    replica = mesh.get_local_rank("replica")
    schedule.step(X.chunk(2)[replica], target=Y.chunk(2)[replica])
    schedule.close()
    return weights(stage) | {"metrics": schedule.metrics()}


def copied(mesh: DeviceMesh) -> list[Tensor]:
    """After each update: the shard of the last layer in the upper stage; in the lower one, that of its copy."""
    stage, schedule = replicated(mesh, "tail", 2, "split", steps=0, refresh=1)
    replica = mesh.get_local_rank("replica")
    shard = dict(stage.named_parameters())["4.weight"].to_local()
    found = [shard.detach().clone()]
    assert schedule.optimizer is not None
    schedule.optimizer.register_step_post_hook(lambda *_: found.append(shard.detach().clone()))
    for _ in range(STEPS):
        schedule.step(X.chunk(2)[replica], target=Y.chunk(2)[replica])
        distributed.barrier()
        time.sleep(0.1)  # for the weights to come
    schedule.close()
    return found


def process(rank: int) -> dict[str, Any]:
    """In four processes: two pipelines train together. Before, the first one trains alone."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replica", "stage"))
    group = mesh["stage"].get_group()
    folder = Path("checkpoints").absolute()
    found: dict[str, Any] = {"resumed": {}, "folder": str(folder)}
    if rank < 2:
        found["synced"] = synced(group)
        found["unsynced"] = {name: unsynced(group, name) for name in (*NAMES, "copy")}
        found["resumed"] = {name: resumed(group, name, str(folder / name)) for name in ("linear", "copy")}
        found["refused"] = refused(group)
        found["slow"] = slow(group)
    distributed.barrier()
    found["replicated"] = {
        f"{name} {segments} {how}": in_sync_replicated(mesh, name, segments, how) for name, segments, how in REPLICATED
    }
    found["unsynced replicated"] = {
        how: unsynced_replicated(mesh, "linear" if "but" in how else "copy", how)
        for how in ("averaged", "split", "split but late")
    }
    found["copied"] = copied(mesh)
    found["resumed"]["unit"] = resumed(group, "unit", str(folder / "unit"), mesh["replica"])
    return found
