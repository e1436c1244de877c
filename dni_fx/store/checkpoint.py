"""Save a training run in one file; a run that goes on from the file is the same bit for bit."""

import copy
import errno
import io
import os
import random
import zipfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from dni_fx.errors import DniFxError, first_line
from dni_fx.runtime import DecoupledModule, SegmentOptimizer, rewritten
from dni_fx.store.matching import check_fits, check_structure, check_taker, kind_of, signature_of
from dni_fx.store.replace import beside, errors_of_writing, flush, real_path

__all__ = ["load_checkpoint", "save_checkpoint"]

_FORMAT = "dni-fx checkpoint 1"

_OWN = "net.dni.optimizer"


def save_checkpoint(path: str | Path, net: DecoupledModule, /, **others: Any) -> None:
    """Write the state of a training run to a file. Call this between two steps.

    The file holds: all parameters and buffers of net and synthesizers; the optimizers of `step="segment"`, or the
    synthesizers' own optimizer; steps, carried states and metrics of the synthesizers; and the random generators of
    torch (CPU and CUDA), numpy and Python.

    Args:
        path: The file. An old file is replaced after the new one is complete.
        net: The net that `dni_fx.transform` or `dni_fx.load` returned.
        others: More to save, by name: an optimizer, a scheduler, a GradScaler, any object with `state_dict()`; and
            plain values, such as the number of the epoch.

    Raises:
        DniFxError: If the file cannot be written, or gradients are being accumulated.
    """
    path = real_path(path)
    optimizer = rewritten(net).dni.optimizer
    if isinstance(optimizer, SegmentOptimizer) and optimizer.accumulates:
        raise DniFxError(f"gradients are being accumulated: save after every {optimizer.accumulate} passes")
    state = net.state_dict()
    plain = {name: value.state_dict() if _stateful(value) else _unwrapped(value) for name, value in others.items()}
    content = {
        "format": _FORMAT,
        "net": state,
        "kind": kind_of(net),
        "buffers": {name: buffer for name, buffer in net.named_buffers() if name not in state},
        "progress": net.dni.progress(),
        "optimizer": None if optimizer is None else optimizer.state_dict(),
        "others": plain,
        "signatures": {name: signature_of(value) for name, value in _takers(net, others).items() if _stateful(value)},
        "random": random_state(),
    }
    with errors_of_writing(path):
        if path.exists() and not path.is_file():
            raise DniFxError(f"{path} exists and is no file: choose another place")
        with beside(path) as new:
            new = new.with_name("checkpoint")  # torch.save names the content after the file, and takes no hidden one
            _write(content, new, plain)
            flush(new)
            os.replace(new, path)
        flush(path.parent)


def _write(content: dict[str, Any], new: Path, plain: dict[str, Any]) -> None:
    """Write a file, and read it back; an error names which of the values in `plain` cannot be saved."""
    try:
        torch.save(content, new)
        torch.load(new, weights_only=True, mmap=True)  # raises if it cannot be read back
    except OSError:
        raise
    except RuntimeError as error:  # torch.save on a full disk
        raise OSError(errno.EIO, f"the file is not complete, as on a full disk: {first_line(error)}") from None
    except Exception as error:  # pickle raises errors of many classes
        culprits = [f"{name}=" for name, value in plain.items() if _why_not_saved(value)]
        what = ", ".join(culprits) or "a parameter group, or the extra state of a module,"
        reason = f"holds what is neither a plain value nor a tensor, and cannot be saved ({first_line(error)})"
        raise DniFxError(f"{what} {reason}") from None


def load_checkpoint(path: str | Path, net: DecoupledModule, /, **others: Any) -> dict[str, Any]:
    """Read a file that `save_checkpoint` wrote, and continue its training run.

    Args:
        path: The file. Loading runs no code from it.
        net: A net made like the saved one: the same model, cuts, synthesizers and settings.
        others: Objects that load their `state_dict()` from the file, by the names that they had in `save_checkpoint`.

    Returns:
        The rest of the file, by name: plain values, and states of objects that are not in `others`.

    Raises:
        DniFxError: If the file is missing, damaged, or of another net, or does not fit one of `others`.
    """
    path = real_path(path)
    takers = _takers(rewritten(net), others)
    content = _read(path)
    check_structure(path, content)
    check_fits(path, net, content)
    states = content["others"] | ({} if content["optimizer"] is None else {_OWN: content["optimizer"]})
    for name, value in takers.items():
        if name not in states or not _stateful(value):
            held = ", ".join(content["others"]) or "nothing"
            raise DniFxError(f"{path}: no state to load into {name}=; beside the net it holds {held}")
        check_taker(path, name, value, states[name], content.get("signatures", {}).get(name))
    with ExitStack() as undo:  # if one part does not take its state, all get back what they had
        for name, value in takers.items():
            _load(path, name, value, states[name], undo)
        _load_net(path, net, content, undo)
        undo.pop_all()
    return {name: value for name, value in content["others"].items() if name not in others}


def _takers(net: DecoupledModule, others: dict[str, Any]) -> dict[str, Any]:
    """All objects beside the net that save and load a state, by the name that error messages use."""
    return others if net.dni.optimizer is None else others | {_OWN: net.dni.optimizer}


def _stateful(value: Any) -> bool:
    """Whether an object can save and load its state."""
    return hasattr(value, "state_dict") and hasattr(value, "load_state_dict")


def _unwrapped(value: Any) -> Any:
    """A numpy scalar as a plain number."""
    return value.item() if isinstance(value, np.generic) else value


def _why_not_saved(value: Any) -> str:
    """Why a file that is read without running its code cannot hold the value; empty if it can."""
    try:
        file = io.BytesIO()
        torch.save(value, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception as error:  # pickle raises errors of many classes
        return first_line(error)
    return ""


def _load(path: Path, name: str, value: Any, state: Any, undo: ExitStack) -> None:
    """Load a state into an object of the person's; `path` and `name` are for the error message."""
    undo.callback(value.load_state_dict, _kept(value))
    try:
        value.load_state_dict(state)
    except DniFxError:
        raise
    except Exception as error:
        raise DniFxError(f"{path}: {name} does not take the state that was saved: {first_line(error)}") from None


def _kept(value: Any) -> Any:
    """The state of an object, to load again if a later part of a checkpoint fails."""
    state = value.state_dict()
    if isinstance(value, torch.optim.Optimizer):
        return state  # an optimizer takes new tensors, and does not write to the old ones
    return pytree.tree_map(lambda leaf: _copied(leaf) if isinstance(leaf, Tensor) else copy.deepcopy(leaf), state)


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _load_net(path: Path, net: DecoupledModule, content: dict[str, Any], undo: ExitStack) -> None:
    """Load the net, the progress of its synthesizers, and the random generators."""
    undo.callback(set_random_state, random_state())
    undo.callback(net.dni.resume, net.dni.progress())
    undo.callback(_set_buffers, net, dict(net.named_buffers()))
    undo.callback(net.load_state_dict, _kept(net))
    try:
        net.load_state_dict(content["net"])
        _set_buffers(net, content["buffers"])
        net.dni.resume(content["progress"])
        set_random_state(content["random"])
    except Exception as error:  # the person's modules, and damaged states, raise errors of many classes
        raise DniFxError(f"{path}: the net does not take the state that was saved: {first_line(error)}") from None


def _read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint file."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not compare checksums
            damaged = archive.testzip()
        content = torch.load(path, map_location="cpu", weights_only=True) if damaged is None else None
    except OSError as error:
        raise DniFxError(f"cannot read {path} ({error.strerror or error})") from None
    except Exception as error:  # a damaged file raises errors of many classes
        raise DniFxError(f"{path} is damaged, or no checkpoint ({first_line(error)})") from None
    if damaged is not None:
        raise DniFxError(f"{path} is damaged: the checksum of {damaged} is wrong")
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise DniFxError(f"{path} is not what this version's dni_fx.save_checkpoint writes")
    return content


def _set_buffers(net: DecoupledModule, buffers: dict[str, Tensor]) -> None:
    """Set the buffers that no state_dict holds."""
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    for name, buffer in buffers.items():
        owner, _, last = name.rpartition(".")
        module = net.get_submodule(owner)
        own = module._buffers.get(last)
        module._buffers[last] = buffer.to(device if own is None else own.device)


def random_state() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])
