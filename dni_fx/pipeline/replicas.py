"""Data parallel training of a stage: its replicas average gradients, or `fully_shard` has split it over them."""

import functools
import warnings
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dni_fx.errors import DniFxError, first_line
from dni_fx.model import is_shard, is_sharded, meshes_in, states_in
from dni_fx.pipeline.link import LinkError, Peer, break_off
from dni_fx.pipeline.stage import Stage
from dni_fx.pipeline.watch import Report, Watch, next_tag
from dni_fx.runtime import check_means, forget_whole_parameters

__all__ = ["Replicas", "place_among_replicas", "prepare_split", "replica_groups"]


class Replica(Peer):
    """A process with the same stage; `stage` is its number among them."""

    def __str__(self) -> str:
        return f"replica {self.stage} (rank {self.rank})"


def prepare_split(
    stage: Stage,
    sync: bool,
    group: dist.ProcessGroup | None,
    replicas: dist.ProcessGroup | None,
) -> None:
    """Prepare a stage that `fully_shard` has split, if it has.

    Args:
        group: The processes of the pipeline.
        sync, replicas: As for `ScheduleDecoupled`.

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


class Replicas:
    """The processes that have the same stage. They begin alike, average their gradients, and notice when one stops.

    Args:
        groups: Of these processes; none: the stage has no replicas.
        timeout: Seconds for a wait.
    """

    def __init__(self, groups: Sequence[dist.ProcessGroup], timeout: float) -> None:
        self.groups, self.timeout = groups, timeout
        self._watches = []
        for group in groups:
            ranks = [dist.get_global_rank(group, k) for k in range(group.size())]
            peers: list[Peer] = [Replica(k, rank) for k, rank in enumerate(ranks)]
            own = peers.pop(group.rank())
            stop = functools.partial(break_off, group)
            self._watches.append(Watch(own, peers, group, next_tag(ranks), timeout, stop))

    def begin(self, stage: Stage, alike: Mapping[str, Any]) -> None:
        """Give all replicas the parameters and buffers of the first one; shards stay as they are.

        Args:
            alike: Values that must be the same in all, by name.

        Raises:
            DniFxError: If it is not.
            LinkError: If another replica has stopped, or does not start within the timeout.
        """
        for watch in self._watches:
            for number, other in enumerate(watch.exchange(alike)):
                for name, value in alike.items():
                    if other[name] != value:
                        raise DniFxError(f"replica {number} has {name}={other[name]}, and {watch.own} has {value}")
        tensors = [tensor for tensor in [*stage.parameters(), *stage.buffers()] if not is_shard(tensor)]
        for group in self.groups:
            for tensor in tensors:
                self._wait(dist.broadcast(tensor.detach(), group_src=0, group=group, async_op=True), tensor)

    def average(self, parameters: Sequence[nn.Parameter]) -> None:
        """Average the gradients; one that a replica lacks counts as zero. Those of shards are averages.

        A synthesizer that learns late may have a gradient in some replicas alone.

        Raises:
            LinkError: If another replica has stopped, or does not take part within the timeout.
        """
        wanted = [parameter for parameter in parameters if parameter.requires_grad and not is_shard(parameter)]
        for group in self.groups if wanted else ():
            self._average(wanted, group)

    def check(self) -> None:
        """Raise a LinkError if another replica has stopped."""
        for watch in self._watches:
            for report in list(watch.reports.values()):
                raise LinkError(report.text, None)

    def explained(self, error: Exception) -> Exception:
        """The error to raise in place of that of a collective, if another replica has stopped."""
        for watch in self._watches:
            if (text := watch.reason()) is not None:
                return LinkError(text, None)
        return error

    def stop(self, text: str) -> None:
        """Tell all others why this process stops."""
        for watch in self._watches:
            watch.stop(Report(text), needs_cause=False)

    def wait(self, seconds: float) -> None:
        """Tell all others that this process ends, and wait until all have ended.

        Raises:
            LinkError: If one has stopped, or does not end within the seconds.
        """
        for watch in self._watches:
            watch.wait(seconds)

    def abandon(self) -> None:
        """Wait for no replica any more; for the end of the program."""
        for watch in self._watches:
            watch.abandon()

    def _average(self, wanted: Sequence[nn.Parameter], group: dist.ProcessGroup) -> None:
        there = torch.tensor([float(parameter.grad is not None) for parameter in wanted], device=wanted[0].device)
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for parameter in wanted:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            by_dtype.setdefault(gradient.dtype, []).append(gradient)
        for gradients in by_dtype.values():
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            self._wait(dist.all_reduce(flat, group=group, async_op=True), flat)
            flat /= dist.get_world_size(group)
            for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))
        self._wait(dist.all_reduce(there, group=group, async_op=True), there)
        rest = {dtype: iter(gradients) for dtype, gradients in by_dtype.items()}
        for parameter, number in zip(wanted, there.tolist(), strict=True):
            gradient = next(rest[parameter.dtype])
            parameter.grad = gradient if number else None

    def _wait(self, work: Any, tensor: Tensor) -> None:
        try:
            # With a limit, NCCL blocks the program until the device is done.
            work.wait(*([timedelta(seconds=self.timeout)] if tensor.device.type == "cpu" else []))
        except RuntimeError as error:
            text = f"a replica of the stage took no part within {self.timeout:g} seconds: {first_line(error)}"
            raise self.explained(LinkError(text, None)) from None
