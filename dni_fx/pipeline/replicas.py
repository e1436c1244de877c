"""Data parallel training of a stage: its replicas begin with the same weights, and average their gradients."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["average_gradients", "copy_weights"]


def copy_weights(stage: nn.Module, group: dist.ProcessGroup) -> None:
    """Give all replicas the parameters and buffers of the first one."""
    for tensor in [*stage.parameters(), *stage.buffers()]:
        dist.broadcast(tensor.detach(), group_src=0, group=group)


def average_gradients(parameters: Sequence[nn.Parameter], group: dist.ProcessGroup) -> None:
    """Average the gradients over the replicas; one that a replica lacks counts as zero.

    A synthesizer that learns late may have a gradient in some replicas alone.
    """
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    if not wanted:
        return
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
