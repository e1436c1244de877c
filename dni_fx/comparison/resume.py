"""Keep a comparison in a file, and go on from it: nets, optimizers, random numbers and records."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from dni_fx.comparison.batches import Batch
from dni_fx.comparison.record import Record
from dni_fx.comparison.trainee import Trainee
from dni_fx.errors import DniFxError, first_line
from dni_fx.runtime import DecoupledModule
from dni_fx.store import beside, errors_of_writing, real_path

__all__ = ["keep", "origin", "resume"]

_SCHEMA = 1


def origin(batch: Batch, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What a run that goes on must have, too: the first batch and the optimizer."""
    defaults = {k: v for k, v in optimizer.defaults.items() if isinstance(v, bool | int | float | str | None | tuple)}
    return {
        "optimizer": f"{type(optimizer).__name__}({', '.join(f'{k}={v}' for k, v in defaults.items())})",
        "batch": _digest(
            [
                leaf
                for leaf in pytree.tree_leaves((batch.inputs.args, batch.inputs.kwargs, batch.target))
                if isinstance(leaf, Tensor)
            ]
        ),
    }


def _digest(tensors: Iterable[Tensor]) -> str:
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
        if tensor.layout is torch.strided and not tensor.is_meta:
            total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]


def keep(path: Path, trainees: Sequence[Trainee], step: int, settings: Mapping[str, Any]) -> None:
    """Write the file, whole or not at all.

    Args:
        step: Steps that are done.
        settings: Plain values that a run that goes on must have, too.
    """
    path = real_path(path)
    content = {"dni_fx_comparison": _SCHEMA, "settings": dict(settings), "step": step}
    with errors_of_writing(path), beside(path) as new:
        new = new.with_name("comparison")  # torch.save names the content after the file
        torch.save(content | {"ways": {trainee.record.name: _state(trainee) for trainee in trainees}}, new)
        os.replace(new, path)


def resume(path: Path, trainees: Sequence[Trainee], settings: Mapping[str, Any]) -> int:
    """Bring the trainees to where they were when the file was written; return the steps that are done.

    Raises:
        DniFxError: If the file is damaged, or of another comparison.
    """
    path = real_path(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        version, states, before = content["dni_fx_comparison"], content["ways"], content["settings"]
    except Exception as error:  # a damaged file raises errors of many classes
        raise DniFxError(f"{path} is damaged, or holds no comparison ({first_line(error)})") from None
    names = [trainee.record.name for trainee in trainees]
    other = [f"{name}={before.get(name)!r}" for name, value in settings.items() if before.get(name) != value]
    if version != _SCHEMA or other or list(states) != names:
        held = ", ".join(other) or f"the ways {', '.join(states)}"
        raise DniFxError(f"{path} is of another comparison, with {held}: give the same arguments, or another file")
    for trainee in trainees:
        try:
            _restore(trainee, states[trainee.record.name])
        except Exception as error:  # another model's state raises errors of many classes
            name = trainee.record.name
            raise DniFxError(f"{path}: the net of {name} does not take its state: {first_line(error)}") from None
    return int(content["step"])


def _state(trainee: Trainee) -> dict[str, Any]:
    net = trainee.net
    return {
        "record": asdict(trainee.record),
        "net": net.state_dict(),
        "buffers": dict(net.named_buffers()),  # also those that no state_dict holds
        "progress": net.dni.progress() if isinstance(net, DecoupledModule) else None,
        "optimizer": trainee.optimizer.state_dict(),
        "random": trainee.random.state,
    }


def _restore(trainee: Trainee, state: Mapping[str, Any]) -> None:
    net = trainee.net
    net.load_state_dict(state["net"])
    buffers = dict(net.named_buffers())
    with torch.no_grad():
        for name, value in state["buffers"].items():
            buffers[name].copy_(value)
    if isinstance(net, DecoupledModule):
        net.dni.resume(state["progress"])
    trainee.optimizer.load_state_dict(state["optimizer"])
    trainee.random.state = state["random"]
    record = dict(state["record"])
    trainee.record = Record(**record | {"scores": [tuple(score) for score in record["scores"]]})
