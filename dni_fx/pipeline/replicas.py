"""Data parallel training of a stage: its replicas average gradients, or `fully_shard` has split it over them."""

import warnings
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dni_fx.errors import DniFxError
from dni_fx.model import is_shard, is_sharded, meshes_in, states_in
from dni_fx.pipeline.stage import Stage
from dni_fx.runtime import check_means, forget_whole_parameters

__all__ = ["average_gradients", "copy_weights", "place_among_replicas", "prepare_split", "replica_groups"]


def prepare_split(
    stage: Stage,
    optimizer: torch.optim.Optimizer | None,
    sync: bool,
    group: dist.ProcessGroup | None,
    replicas: dist.ProcessGroup | None,
) -> None:
    """Prepare a stage that `fully_shard` has split, if it has.

    Args:
        group: The processes of the pipeline.
        optimizer, sync, replicas: As for `ScheduleDecoupled`.

    Raises:
        DniFxError: If it cannot train with these arguments.
    """
    if not is_sharded(stage):
        return
    if [state._modules for state in states_in(stage)] != [(stage,)]:
        raise DniFxError("fully_shard has split the net, or a part of the stage: call fully_shard(stage, mesh=...)")
    pipeline = dist.get_process_group_ranks(group)
    for mesh in meshes_in(stage):
        if len({*pipeline} & {*mesh.mesh.flatten().tolist()}) > 1:
            raise DniFxError(
                "fully_shard has split the stage over processes that have other stages: "
                'give it the processes that have the same stage, as mesh=mesh["replica"], and group= the pipeline'
            )
    check_means(stage)
    if replicas is not None:
        raise DniFxError("fully_shard has split the stage over its replicas, and averages gradients: omit replicas=")
    here = {*stage.parameters()}
    if optimizer is not None and any(p not in here for group in optimizer.param_groups for p in group["params"]):
        raise DniFxError("the optimizer has parameters that are not of the stage: make it after fully_shard(stage)")
    if not sync and any(map(is_shard, stage.late_parameters)):
        raise DniFxError(
            f"gradients come late to the synthesizers of stage {stage.index}, at other times in each replica: call "
            "fully_shard(stage, ignored_params=stage.late_parameters, ...), or use exits, or sync=True"
        )
    # With sync, activations are returned with a graph, and nothing writes to them.
    warnings.filterwarnings("ignore", r"FSDP2-wrapped module \(FSDPStage\) returned a view tensor")
    forget_whole_parameters(stage)


def replica_groups(stage: Stage, replicas: dist.ProcessGroup | None) -> list[dist.ProcessGroup]:
    """The groups of processes that have the same stage; with a mesh of several dimensions, of each dimension."""
    given = [] if replicas is None else [replicas]
    return next((mesh.get_all_groups() for mesh in meshes_in(stage)), given)


def place_among_replicas(stage: Stage) -> list[int]:
    """The place of this process in the mesh of a stage that is split; else empty."""
    return next((mesh.get_coordinate() for mesh in meshes_in(stage)), [])


def copy_weights(stage: nn.Module, groups: Sequence[dist.ProcessGroup]) -> None:
    """Give all replicas the parameters and buffers of the first one; shards stay as they are."""
    for group in groups:
        for tensor in [*stage.parameters(), *stage.buffers()]:
            if not is_shard(tensor):
                dist.broadcast(tensor.detach(), group_src=0, group=group)


def average_gradients(parameters: Sequence[nn.Parameter], groups: Sequence[dist.ProcessGroup]) -> None:
    """Average the gradients over the replicas; one that a replica lacks counts as zero. Those of shards are averages.

    A synthesizer that learns late may have a gradient in some replicas alone.
    """
    wanted = [parameter for parameter in parameters if parameter.requires_grad and not is_shard(parameter)]
    for group in groups if wanted else ():
        _average(wanted, group)


def _average(wanted: Sequence[nn.Parameter], group: dist.ProcessGroup) -> None:
    there = torch.tensor([float(parameter.grad is not None) for parameter in wanted], device=wanted[0].device)
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for parameter in wanted:
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        by_dtype.setdefault(gradient.dtype, []).append(gradient)
    for gradients in by_dtype.values():
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat, group=group)
        flat /= dist.get_world_size(group)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))
    dist.all_reduce(there, group=group)
    rest = {dtype: iter(gradients) for dtype, gradients in by_dtype.items()}
    for parameter, number in zip(wanted, there.tolist(), strict=True):
        gradient = next(rest[parameter.dtype])
        parameter.grad = gradient if number else None
