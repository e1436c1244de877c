"""A warning for synthesizers that no optimizer trains, while an optimizer trains the model."""

import warnings
import weakref

import torch
from torch import nn

from dni_fx.model import is_adapter
from dni_fx.runtime.dni import Dni, StepsSegments
from dni_fx.runtime.live import held_by, live_optimizers, post_each_step

__all__ = ["Untrained"]


class Untrained:
    """Looks at the steps of all optimizers, until one has stepped with gradients of the synthesizers there."""

    def __init__(self) -> None:
        self.nets: tuple[weakref.ref[nn.Module], weakref.ref[Dni]] | None = None  # None: before the first pass
        self.known = False  # whether the synthesizers are trained, or the warning was given
        self.left_out: list[nn.Parameter] = []  # with gradients, when an optimizer of the model stepped without them

    def pre_forward(self, net: nn.Module, dni: Dni) -> None:
        """Warn if no optimizer trains a synthesizer: one may step later than that of the model."""
        if self.known:
            return
        if self.nets is None and any(map(is_adapter, net.modules())):
            _warn_of_frozen(dni)
        if isinstance(dni.optimizer, StepsSegments) or dni.rewrite.mix == 1.0:  # with mix 1 they train nothing
            self.known = True
        elif self.nets is None:
            self.nets = weakref.ref(net), weakref.ref(dni)
            post_each_step(self)
        elif self.left_out:
            self.known = True
            trained = held_by(live_optimizers())
            left_out = {parameter for parameter in self.left_out if parameter not in trained}
            names = [name for name, crossing in dni.crossings.items() if left_out & {*crossing.parameters()}]
            if names:
                warnings.warn(_message(names), stacklevel=2)

    def post_step(self, optimizer: torch.optim.Optimizer) -> bool:
        """After a step of any optimizer: look whether it trains the model, and the synthesizers."""
        net, dni = (None, None) if self.nets is None else (found() for found in self.nets)
        if self.known or self.left_out or net is None or dni is None:
            return self.known
        learning = [p for p in dni.parameters() if p.requires_grad and p.grad is not None]
        if not learning:
            return False
        trained = held_by([optimizer])
        left_out = [p for p in learning if p not in trained]
        self.known = not left_out
        if left_out and not trained.isdisjoint(net.parameters()):
            self.left_out = left_out
        return self.known


def _warn_of_frozen(dni: Dni) -> None:
    """Warn of synthesizers that `peft.get_peft_model` has frozen, as it does all but the adapters."""
    names = []
    for name, synthesizer in dni.synthesizers.items():
        trains = [p.requires_grad for p in synthesizer.parameters()]
        if trains and not any(trains):
            names.append(name)
    if names:
        warnings.warn(
            f"adapters have frozen the synthesizer {names[0]}{_more(names)}, which learns nothing: call "
            "net.dni.requires_grad_(True) after peft.get_peft_model, or transform the model that it returns",
            stacklevel=2,
        )


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _message(names: list[str]) -> str:
    return (
        f"no optimizer trains the synthesizer {names[0]}{_more(names)}, so the layers below its cut learn nothing "
        "useful: give the optimizer of the model to dni_fx.transform, optimizer=..., or make the optimizer from "
        "net.parameters()"
    )
