"""A warning for an optimizer that steps parameters which were replaced, while no optimizer trains the new ones."""

import warnings
import weakref

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from dni_fx.model import is_sharded
from dni_fx.runtime.live import held_by, live_optimizers, post_each_step

__all__ = ["OldParameters"]


class OldParameters:
    """The parameters of a net that were replaced, and the new ones, until an optimizer has stepped after that."""

    def __init__(self) -> None:
        self.net: weakref.ref[nn.Module] | None = None
        self.old = WeakIdKeyDictionary()  # does not keep the memory of parameters
        self.new = WeakIdKeyDictionary()

    def replaced(self, net: nn.Module, before: set[nn.Parameter]) -> None:
        """After parameters of a net were replaced: look at the next step of an optimizer.

        Args:
            before: The parameters of the net before that.
        """
        now = set(net.parameters())
        if is_sharded(net) or not before - now:  # fully_shard replaces parameters at each pass
            return
        self.net = weakref.ref(net)
        self.old.update(dict.fromkeys(before - now))
        self.new.update(dict.fromkeys(now - before))
        post_each_step(self)

    def post_step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Warn if this optimizer trains old parameters, and none trains the new ones; return whether all is known."""
        net = None if self.net is None else self.net()
        if net is None or not self.new:
            return True
        now = dict(net.named_parameters())
        if not any(p in self.old for p in held_by([optimizer]).difference(now.values())):
            return False
        learning = {name: p for name, p in now.items() if p in self.new and p.requires_grad and p.grad is not None}
        if not learning:
            return False
        trained = held_by(live_optimizers())
        names = [name for name, parameter in learning.items() if parameter not in trained]
        self.old, self.new = WeakIdKeyDictionary(), WeakIdKeyDictionary()
        if names:
            warnings.warn(_message(names), stacklevel=2)
        return True


def _message(names: list[str]) -> str:
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return (
        f"no optimizer trains parameter {names[0]!r}{more}: it replaced another, which an optimizer still steps, as "
        "after load_state_dict(assign=True), to_empty or weight_norm. Make the optimizer from net.parameters() after "
        "that"
    )
