"""`fully_shard` with unlock="backward": segments run backward while modules around them run forward.

`fully_shard` ends each backward pass with a callback, which frees the whole parameters of all modules. Those of a
module that runs forward are still needed: of the net, of a module that holds it, of a module with a cut inside.
"""

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dni_fx import ops
from dni_fx.model import gather_again, parameter_groups, running_states, tensors_in
from dni_fx.runtime.module import DecoupledModule

__all__ = ["Sharding", "end_backward", "forget_whole_parameters", "keep_whole_in_part", "keep_whole_parameters"]


class Sharding:
    """Keeps whole the parameters of modules that run forward; reduces a segment's gradients after its backward pass.

    A `SegmentListener`.
    """

    def __init__(self) -> None:
        self.net: weakref.ref[nn.Module] | None = None  # or a part of it, which runs alone
        self.running: list[tuple[Any, Any]] = []  # each state and group of parameters, and its training state
        self.reshards: list[tuple[Any, bool]] = []  # each group of parameters, and its reshard_after_backward
        self.kept: list[Any] = []  # states of modules that have kept their whole parameters in this pass
        self.unfinished = False  # segments have run backward, and the backward pass of the loss has not begun

    def __reduce__(self) -> tuple[Any, ...]:
        return Sharding, ()

    def pre_forward(self, net: DecoupledModule) -> None:
        """Gather the parameters again after a batch that was skipped: segments have stepped the shards."""
        self.pre_forward_of_part(net, ())
        if self.unfinished:
            gather_again(self.kept)
        self.unfinished = False

    def pre_forward_of_part(self, part: nn.Module, _args: Any) -> None:
        """Note which module runs."""
        self.net = weakref.ref(part)
        self._restore()

    def pre_backward(self, index: int) -> None:
        """Let the callback keep the parameters of the modules that run forward."""
        net = None if self.net is None else self.net()
        states = [] if net is None else running_states(net)
        self.kept = [*dict.fromkeys((*self.kept, *states))] if self.unfinished else states
        groups = [group for state in states for group in parameter_groups(state)]
        self.running = [(running, running._training_state) for running in (*states, *groups)]
        self.reshards = [(group, group.reshard_after_backward) for group in groups]
        for group, _ in self.reshards:
            group.reshard_after_backward = False

    def post_backward(self, index: int) -> None:
        """Reduce the gradients of the segment, also where no hook of `fully_shard` has run in its backward pass."""
        if self.running:
            self.unfinished = True
            root = self.running[0][0]
            around = root._state_ctx.iter_forward_root
            root._root_post_backward_final_callback()
            root._state_ctx.iter_forward_root = around
        self._restore()

    def post_forward(self, index: int, outputs: Sequence[Tensor]) -> None:
        """Nothing to do: the segment's backward pass is that of the loss."""

    def post_forward_of_net(self, output: Any) -> None:
        """Note when the backward pass of the loss begins."""
        reached = [t for t in tensors_in(output) if t.requires_grad]
        if self.unfinished and reached:
            torch.autograd.graph.register_multi_grad_hook(reached, self._pre_loss_backward, mode="any")

    def _pre_loss_backward(self, _gradient: Tensor) -> None:
        self.unfinished = False

    def _restore(self) -> None:
        for running, training_state in self.running:
            running._training_state = training_state
        for group, reshards in self.reshards:
            group.reshard_after_backward = reshards
        self.running, self.reshards = [], []


def keep_whole_parameters(net: DecoupledModule) -> None:
    """Let segments run backward in a net that `fully_shard` has split, wherever it does."""
    sharding = Sharding()
    for segment in net.dni.segments:
        segment.listeners.insert(0, sharding)
    net.register_forward_pre_hook(_pre_forward)
    net.register_forward_hook(_post_forward)


def keep_whole_in_part(part: nn.Module, net: DecoupledModule) -> None:
    """Let segments run backward in a module that runs some of the net's; `end_backward` comes before each update."""
    if (sharding := _sharding(net)) is not None:
        part.register_forward_pre_hook(sharding.pre_forward_of_part)


def forget_whole_parameters(part: nn.Module) -> None:
    """Let segments hold no parameters that `fully_shard` has split since, which would stay in memory."""
    for module in part.modules():
        if isinstance(module, ops.Segment):
            module.hold(())
            module.listeners = [listener for listener in module.listeners if type(listener) is Sharding]


def end_backward(part: nn.Module) -> None:
    """Reduce the gradients that `fully_shard` has not reduced in a part of a net, and let it keep shards alone."""
    split: Any = part if hasattr(part, "_get_fsdp_state") else None
    if split is not None and (state := split._get_fsdp_state())._is_root:
        state._root_post_backward_final_callback()
        split.reshard()


def _sharding(net: DecoupledModule) -> Sharding | None:
    listeners = net.dni.segments[0].listeners if len(net.dni.segments) else ()
    return next((one for one in listeners if type(one) is Sharding), None)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _pre_forward(net: DecoupledModule, _args: Any) -> None:
    sharding = _sharding(net)
    if sharding is not None:
        sharding.pre_forward(net)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _post_forward(net: DecoupledModule, _args: Any, output: Any) -> None:
    sharding = _sharding(net)
    if sharding is not None:
        sharding.post_forward_of_net(output)
