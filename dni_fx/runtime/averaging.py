"""DistributedDataParallel with unlock="backward": a segment's gradients are averaged while the next one runs forward.

DistributedDataParallel averages the gradients of the backward pass of the loss: those of the last segment. All other
segments run their backward passes earlier, during the forward pass, where DistributedDataParallel averages nothing.
So it ignores the parameters of these segments, and `Averaging` averages their gradients.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd import Variable
from torch.nn.parallel import DistributedDataParallel

from dni_fx.errors import DniFxError
from dni_fx.runtime.module import DecoupledModule
from dni_fx.runtime.parameters import owned_parameters

__all__ = ["Averaging", "average_segments", "is_averaged"]


@dataclass
class _Pending:
    """An average that is being computed: `flat` will hold the averages of all `gradients`, one after the other."""

    work: "distributed.Work"  # in quotes: PyTorch may be built without it
    flat: Tensor
    gradients: list[Tensor]


class Averaging:
    """Averages gradients over the processes of the DistributedDataParallel that is running the net, if there is one.

    A `SegmentListener`: it starts to average a segment's gradients right after the segment's backward pass.

    Args:
        net: Has the parameters; `groups` are those of each segment but the last.
    """

    def __init__(self, net: DecoupledModule) -> None:
        self.take(net)
        self.pending: list[_Pending] = []
        self.begun = False

    def pre_forward(self, net: DecoupledModule) -> None:
        """Before the first forward pass: copy the parameters of the first process to all others."""
        wrapper = _wrapper()
        if wrapper is None or self.begun:
            return
        self.take(net)
        _leave_out(wrapper, {id(parameter) for group in self.groups for parameter in group})
        first = distributed.get_global_rank(wrapper.process_group, 0)
        for group in self.groups:
            for parameter in group:
                distributed.broadcast(parameter.detach(), first, wrapper.process_group)
        self.begun = True

    def take(self, net: DecoupledModule) -> list[str]:
        """Average the gradients of the parameters that the net has now; return the names of these."""
        self.groups: Sequence[Sequence[nn.Parameter]] = [own.every() for own in owned_parameters(net, net.dni)[:-1]]
        apart = {id(p) for group in self.groups for p in group}
        return [name for name, parameter in net.named_parameters() if id(parameter) in apart]

    def pre_backward(self, index: int) -> None:
        """Nothing to do."""

    def post_backward(self, index: int) -> None:
        """Start to average the gradients of a segment, after the averages of the segment before are there."""
        self.wait()
        wrapper = _wrapper()
        gradients = [p.grad for p in self.groups[index] if p.grad is not None]
        if wrapper is None or not wrapper.require_backward_grad_sync or not gradients:
            return
        flat = torch.cat([g.reshape(-1) for g in gradients]) / distributed.get_world_size(wrapper.process_group)
        work = distributed.all_reduce(flat, group=wrapper.process_group, async_op=True)
        self.pending.append(_Pending(work, flat, gradients))

    def wait(self) -> None:
        """Wait for the averages that were started, and put them in the place of the gradients."""
        while self.pending:
            one = self.pending.pop()
            one.work.wait()
            averages = one.flat.split([g.numel() for g in one.gradients])
            for gradient, average in zip(one.gradients, averages, strict=True):
                gradient.copy_(average.view_as(gradient))

    def post_forward(self, index: int, outputs: Sequence[Tensor]) -> None:
        """Let the gradients of a segment be averaged at the end of the backward pass of the loss."""
        wrapper = _wrapper()
        if wrapper is None:
            return

        def average() -> None:
            with wrapper._inside_ddp_forward():
                self.post_backward(index)
            self.wait()

        def queue(_gradient: Tensor) -> None:
            engine: Any = Variable._execution_engine
            engine.queue_callback(average)

        reached = [output for output in outputs if output.requires_grad]
        if reached:
            torch.autograd.graph.register_multi_grad_hook(reached, queue, mode="any")


def _wrapper() -> DistributedDataParallel | None:
    """The DistributedDataParallel that is running forward."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    wrapper: DistributedDataParallel | None = DistributedDataParallel._get_active_ddp_module()
    return wrapper


def _leave_out(wrapper: DistributedDataParallel, apart: set[int]) -> None:
    """Let DistributedDataParallel average no parameters of these ids.

    It reads their names when it wraps the net. A module that holds the net has no such names: then the wrapper builds
    its `Reducer` again, as a copy of the wrapper does.

    Raises:
        DniFxError: If the wrapper has no Reducer.
    """
    names = {name for name, parameter in wrapper.module.named_parameters() if id(parameter) in apart}
    if names <= wrapper.parameters_to_ignore:
        return
    if wrapper._use_python_reducer:
        raise DniFxError(
            'with unlock="backward" and the optimize_ddp mode "python_reducer", DistributedDataParallel must wrap the '
            "net itself, and nothing around it"
        )
    wrapper.parameters_to_ignore = wrapper.parameters_to_ignore | names
    parameters, sparse = wrapper._build_params_for_reducer()
    debug_names = wrapper._build_debug_param_to_name_mapping(parameters)
    wrapper._ddp_init_helper(parameters, sparse, debug_names, wrapper.static_graph)
    if wrapper.static_graph:
        wrapper.reducer._set_static_graph()
    for hook, state in wrapper._comm_hooks:
        distributed._register_comm_hook(wrapper.reducer, state, hook)  # type: ignore[attr-defined]
    wrapper.reducer.prepare_for_forward()  # the wrapper has called this already, of the old one


def is_averaged() -> bool:
    """Whether a DistributedDataParallel is running forward, which needs a gradient of every parameter."""
    return _wrapper() is not None


def average_segments(net: DecoupledModule) -> None:
    """Average the gradients of all segments but the last, wherever `net` is run by DistributedDataParallel."""
    averaging = Averaging(net)
    net.dni.averaging = averaging
    for segment in net.dni.segments:
        segment.listeners.insert(0, averaging)
    net.register_forward_pre_hook(_pre_forward)
    net.register_forward_hook(_post_forward)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _pre_forward(net: DecoupledModule, _args: Any) -> None:
    if net.dni.averaging is not None:
        net.dni.averaging.pre_forward(net)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _post_forward(net: DecoupledModule, _args: Any, _output: Any) -> None:
    if net.dni.averaging is not None:
        net.dni.averaging.wait()
