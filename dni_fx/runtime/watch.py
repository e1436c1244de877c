"""Looks at a training loop, and reports errors in it that no single call shows."""

import warnings
from typing import Any

import torch

from dni_fx import ops
from dni_fx.model import tensors_in
from dni_fx.runtime.diverged import Diverged
from dni_fx.runtime.dni import StepsSegments
from dni_fx.runtime.live import held_by, live_optimizers
from dni_fx.runtime.module import DecoupledModule
from dni_fx.runtime.old_parameters import OldParameters
from dni_fx.runtime.replaced import Places, take_replaced
from dni_fx.runtime.untrained import Untrained

__all__ = ["Watch", "watch", "watch_training"]


class Watch:
    """The facts that are remembered from one forward pass to the next. A copy of a net begins anew."""

    def __init__(self) -> None:
        self.places: Places | None = None  # None: before the first pass
        self.old_parameters = OldParameters()
        self.untrained = Untrained()
        self.diverged = Diverged()

    def __reduce__(self) -> tuple[Any, ...]:
        return Watch, ()

    def pre_forward(self, net: DecoupledModule) -> None:
        """Before a forward pass in train mode.

        Raises:
            DniFxError: If parameters were replaced that an optimizer trains.
        """
        if self.places is None:
            self.places = Places(net)
        elif not self.places.unchanged():
            before = self.places.parameters
            self.places = take_replaced(net, self.places)
            self.old_parameters.replaced(net, before)
        if net.dni.unstepped:
            net.dni.unstepped = False
            _warn_of_no_optimizer(net)
        self.untrained.pre_forward(net, net.dni)
        self.diverged.pre_forward(net.dni)


def watch(net: DecoupledModule) -> Watch:
    """The watch of a net; nets that an older version pickled get one here."""
    if net.dni.watch is None:
        net.dni.watch = Watch()
    assert isinstance(net.dni.watch, Watch)
    return net.dni.watch


def watch_training(net: DecoupledModule) -> None:
    """Look at the training loop of a net from now on."""
    watch(net).places = Places(net)
    unlocked = net.dni.rewrite.unlock == "backward"
    net.register_forward_pre_hook(_pre_unlocked if unlocked else _pre_forward)
    if unlocked:
        net.register_forward_hook(_post_unlocked)


def _pre_forward(net: DecoupledModule, _args: Any) -> None:
    if net.training and not torch.compiler.is_compiling() and torch.is_grad_enabled():
        watch(net).pre_forward(net)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _pre_unlocked(net: DecoupledModule, args: Any) -> None:
    begins = net.training and torch.is_grad_enabled() and not isinstance(net.dni.optimizer, StepsSegments)
    begun = ops.ForwardPass() if begins else None
    for segment in net.dni.segments:
        segment.forward_pass = begun
    _pre_forward(net, args)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _post_unlocked(net: DecoupledModule, _args: Any, output: Any) -> None:
    begun = None
    for segment in net.dni.segments:
        begun, segment.forward_pass = segment.forward_pass, None
    if begun is not None:
        begun.end([tensor for tensor in tensors_in(output) if tensor.grad_fn is not None])


def _warn_of_no_optimizer(net: DecoupledModule) -> None:
    """Warn if no optimizer trains a copy of a net whose segments stepped."""
    if held_by(live_optimizers()).isdisjoint(net.parameters()):
        warnings.warn(
            'no optimizer trains this copy of a net with step="segment": give it one, '
            "dni_fx.SegmentOptimizer(net, torch.optim.Adam), or step an optimizer of net.parameters() in the loop",
            stacklevel=2,
        )
