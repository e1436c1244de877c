"""DistributedDataParallel with unlock="backward": a segment's gradients are averaged while the next one runs forward.

DistributedDataParallel averages what comes in the backward pass of the loss: the last segment. All others go backward
before that, within the forward pass, where it does not look: it is told to leave them out, and they are averaged here.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd import Variable

from dni_fx.errors import DniFxError
from dni_fx.runtime.parameters import owned_parameters

__all__ = ["Averaging", "average_segments", "is_averaged"]


class Averaging:
    """Averages gradients over the processes of the DistributedDataParallel that is running the net, if there is one.

    Args:
        groups: Parameters of each segment but the last.
    """

    def __init__(self, groups: Sequence[Sequence[nn.Parameter]]) -> None:
        self.groups = groups
        self.pending: list[tuple[Any, Tensor, list[Tensor]]] = []
        self.begun = False

    def begin(self, net: nn.Module) -> None:
        """Before the first pass: all processes start from the parameters of the first one."""
        wrapper = _wrapper()
        if wrapper is None or self.begun:
            return
        if not set(ignored(net)) <= wrapper.parameters_to_ignore:
            raise DniFxError(
                'with unlock="backward" DistributedDataParallel must wrap the net itself, and nothing around it'
            )
        for group in self.groups:
            for parameter in group:
                distributed.broadcast(
                    parameter.detach(), distributed.get_global_rank(wrapper.process_group, 0), wrapper.process_group
                )
        self.begun = True

    def start(self, index: int) -> None:
        """Average the gradients of a segment, without waiting; those of the one before are awaited."""
        self.finish()
        wrapper = _wrapper()
        gradients = [p.grad for p in self.groups[index] if p.grad is not None]
        if wrapper is None or not wrapper.require_backward_grad_sync or not gradients:
            return
        flat = torch.cat([g.reshape(-1) for g in gradients]) / distributed.get_world_size(wrapper.process_group)
        work = distributed.all_reduce(flat, group=wrapper.process_group, async_op=True)
        self.pending.append((work, flat, gradients))

    def finish(self) -> None:
        """Wait for what was started."""
        while self.pending:
            work, flat, gradients = self.pending.pop()
            work.wait()
            for gradient, averaged in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(averaged.view_as(gradient))

    def at_the_end(self, index: int, outputs: Sequence[Tensor]) -> None:
        """Average the gradients of a segment after the backward pass of the loss, which will reach `outputs`."""
        wrapper = _wrapper()
        if wrapper is None:
            return

        def average() -> None:
            with wrapper._inside_ddp_forward():
                self.start(index)
            self.finish()

        def queue(gradients: Any) -> None:
            engine: Any = Variable._execution_engine
            engine.queue_callback(average)

        reached = [output for output in outputs if output.requires_grad]
        if reached:
            torch.autograd.graph.register_multi_grad_hook(reached, queue, mode="any")


def _wrapper() -> Any:
    """The DistributedDataParallel that is running forward."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    return nn.parallel.DistributedDataParallel._get_active_ddp_module()


def is_averaged() -> bool:
    """Whether one is running forward, which waits for a gradient of every parameter."""
    return _wrapper() is not None


def ignored(net: nn.Module) -> list[str]:
    """Names of the parameters that DistributedDataParallel leaves out."""
    found: list[str] = net.__dict__.get("_ddp_params_and_buffers_to_ignore", [])
    return found


def average_segments(net: Any) -> None:
    """Average the gradients of all segments but the last, wherever `net` is run by DistributedDataParallel."""
    averaging = Averaging([(*own, *synthesizers) for own, synthesizers in owned_parameters(net, net.dni)[:-1]])
    apart = {id(p) for group in averaging.groups for p in group}
    net.__dict__["_ddp_params_and_buffers_to_ignore"] = [n for n, p in net.named_parameters() if id(p) in apart]
    net.dni.__dict__["averaging"] = averaging
    for index, segment in enumerate(net.dni.segments):
        segment.tell(index, averaging=averaging)
    net.register_forward_pre_hook(_begin)
    net.register_forward_hook(_end)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _begin(net: Any, _args: Any) -> None:
    net.dni.__dict__["averaging"].begin(net)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _end(net: Any, _args: Any, _output: Any) -> None:
    net.dni.__dict__["averaging"].finish()
