"""The states of several optimizers as that of one, in the form of `torch.optim.Optimizer.state_dict`."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from dni_fx.errors import DniFxError

__all__ = ["call_each", "joined_state", "load_joined_state"]

_FORM = ("state", "param_groups")


def joined_state(optimizers: Sequence[Sequence[torch.optim.Optimizer]]) -> dict[str, Any]:
    """One state: the parameters are numbered through all groups of all optimizers, as those of one optimizer are.

    Args:
        optimizers: Those of each segment.

    Returns:
        "state" and "param_groups"; "segments": the rest of each optimizer's state, that of no parameter with it.
    """
    state: dict[Any, Any] = {}
    groups: list[dict[str, Any]] = []
    besides: list[list[dict[str, Any]]] = []
    first = 0
    for own in optimizers:
        besides.append([])
        for optimizer in own:
            part = optimizer.state_dict()
            state |= {key + first: value for key, value in part["state"].items() if isinstance(key, int)}
            of_none = {key: value for key, value in part["state"].items() if not isinstance(key, int)}
            groups += [group | {"params": [i + first for i in group["params"]]} for group in part["param_groups"]]
            first += sum(len(group["params"]) for group in part["param_groups"])
            others = {key: value for key, value in part.items() if key not in _FORM}
            besides[-1].append(others | ({"state": of_none} if of_none else {}))
    return {"state": state, "param_groups": groups, "segments": besides}


def load_joined_state(optimizers: Sequence[Sequence[torch.optim.Optimizer]], state_dict: dict[str, Any]) -> None:
    """Set the states of optimizers from `joined_state`, or from what torch.distributed.checkpoint made of it.

    Raises:
        DniFxError: If it is the state of other groups of parameters.
    """
    besides = state_dict.get("segments", [[{} for _ in own] for own in optimizers])
    if "state" not in state_dict:  # of version 0.1: the states one by one
        parts = state_dict.get("segments", [])
    else:
        groups = list(state_dict["param_groups"])
        parts = [[_take(optimizer, groups, state_dict["state"]) for optimizer in own] for own in optimizers]
        if groups or None in [part for own in parts for part in own]:
            parts = []
    if [len(own) for own in besides] != [len(own) for own in optimizers] or not parts:
        raise DniFxError("the state is not that of an optimizer of the same segments")
    for own, others, its in zip(optimizers, besides, parts, strict=True):
        for optimizer, other, part in zip(own, others, its, strict=True):
            optimizer.load_state_dict(other | part | {"state": other.get("state", {}) | part["state"]})


def _take(
    optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]], state: dict[Any, Any]
) -> dict[str, Any] | None:
    """Take the groups of an optimizer off the front of all groups; None: they have other numbers of parameters."""
    taken = [groups.pop(0) for _ in optimizer.param_groups if groups]
    if [len(g["params"]) for g in taken] != [len(g["params"]) for g in optimizer.param_groups]:
        return None
    keys = {key for group in taken for key in group["params"]}
    return {"state": {key: value for key, value in state.items() if key in keys}, "param_groups": taken}


def call_each(optimizers: Iterable[torch.optim.Optimizer], method: str) -> None:
    """Call a method without arguments of each optimizer that has it."""
    for optimizer in optimizers:
        getattr(optimizer, method, lambda: None)()
