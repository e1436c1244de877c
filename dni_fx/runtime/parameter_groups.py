"""The synthesizers' parameters as groups of an optimizer, with their learning rates."""

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dni_fx.errors import DniFxError, first_line
from dni_fx.runtime.dni import Dni
from dni_fx.settings import Training

__all__ = [
    "OptimizerFactory",
    "RatedGroup",
    "add_synthesizers",
    "attach_synthesizers",
    "made_by",
    "own_factory",
    "rated_groups",
]

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

_OWN = (
    "give the synthesizers an optimizer of their own, "
    "dni_fx.transform(..., training=dni_fx.Training(optimizer=torch.optim.AdamW))"
)

TIME_RATE = 0.1  # of the learning rate of the model, for synthesizers in time


def attach_synthesizers(optimizer: torch.optim.Optimizer, dni: Dni, training: Training) -> None:
    """Train the synthesizers' parameters whenever the optimizer steps."""
    dni.given = weakref.ref(optimizer)
    added = list(dni.parameters())
    if not added:
        return
    factory = own_factory(type(optimizer), added, training)
    if factory is None:
        add_synthesizers(optimizer, dni, added, training)
        return
    own = dni.optimizer = made_by(factory, added, "the synthesizers")
    zero_grad = optimizer.zero_grad

    def post_step(*_: object) -> None:
        own.step()
        own.zero_grad()

    def zero_both(set_to_none: bool = True) -> None:
        zero_grad(set_to_none)
        own.zero_grad(set_to_none)

    optimizer.register_step_post_hook(post_step)
    optimizer.zero_grad = zero_both  # type: ignore[method-assign]  # PyTorch has no hook here: a batch may be skipped


def add_synthesizers(optimizer: torch.optim.Optimizer, dni: Dni, added: list[nn.Parameter], training: Training) -> None:
    """Add these parameters of synthesizers to an optimizer that takes them, at a multiple of its learning rate."""
    for group in rated_groups(dni, added, training):
        params: list[Any] = list(group.parameters)
        if "param_names" in optimizer.param_groups[0]:  # then all groups need names
            count = sum(len(other["params"]) for other in optimizer.param_groups)
            params = [(f"dni.{count + i}", p) for i, p in enumerate(group.parameters)]
        optimizer.add_param_group({"params": params, "lr": optimizer.param_groups[0]["lr"] * group.rate})


def own_factory(kind: type, parameters: list[nn.Parameter], training: Training) -> OptimizerFactory | None:
    """The function that makes the optimizer of these synthesizers; None: the model's optimizer takes them, too.

    AdamW, where optimizers of the model's class take matrices alone, and synthesizers have vectors; or sparse gradients
    alone.
    """
    if training.optimizer is not None:
        return training.optimizer
    of_matrices = any("muon" in base.__name__.lower() for base in kind.__mro__)
    refused = issubclass(kind, torch.optim.SparseAdam) or (of_matrices and any(p.dim() != 2 for p in parameters))
    return torch.optim.AdamW if refused else None


def made_by(factory: OptimizerFactory, parameters: list[nn.Parameter], whose: str) -> torch.optim.Optimizer:
    """The optimizer that a function makes.

    Raises:
        DniFxError: If the optimizer does not take the parameters.
    """
    try:
        return factory(parameters)
    except ValueError as error:
        advice = f": {_OWN}" if whose == "the synthesizers" else ""
        raise DniFxError(f"no optimizer of the parameters of {whose}: {first_line(error)}{advice}") from error


@dataclass
class RatedGroup:
    """Parameters of synthesizers, and the factor of the model's learning rate that gives theirs."""

    parameters: list[nn.Parameter]
    rate: float


def rated_groups(dni: Dni, parameters: list[nn.Parameter], training: Training) -> list[RatedGroup]:
    """These parameters of synthesizers in at most two groups: of cuts in depth, and of cuts in time."""
    time_parameters = {id(p) for crossing in dni.crossings.values() if crossing.in_time for p in crossing.parameters()}
    in_depth = [p for p in parameters if id(p) not in time_parameters]
    in_time = [p for p in parameters if id(p) in time_parameters]
    groups = [
        RatedGroup(in_depth, 1.0 if training.lr is None else training.lr),
        RatedGroup(in_time, TIME_RATE if training.lr is None else training.lr),
    ]
    return [group for group in groups if group.parameters]
