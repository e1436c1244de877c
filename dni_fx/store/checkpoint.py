"""Save a training run in one file; a run that goes on from the file is the same bit for bit."""

import io
import os
import random
import tempfile
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dni_fx.errors import DniFxError, first_line
from dni_fx.paths import as_path
from dni_fx.runtime import DecoupledModule, SegmentOptimizer, rewritten

__all__ = ["load_checkpoint", "save_checkpoint"]

_FORMAT = "dni-fx checkpoint 1"


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
    path = Path(os.path.realpath(as_path(path)))
    optimizer = rewritten(net).dni.optimizer
    if isinstance(optimizer, SegmentOptimizer) and optimizer.accumulates:
        raise DniFxError(f"gradients are being accumulated: save after every {optimizer.accumulate} passes")
    state = net.state_dict()
    plain = {name: value.state_dict() if _stateful(value) else _unwrapped(value) for name, value in others.items()}
    content = {
        "format": _FORMAT,
        "net": state,
        "kind": _kind(net),
        "buffers": {name: buffer for name, buffer in net.named_buffers() if name not in state},
        "progress": net.dni.progress(),
        "optimizer": None if optimizer is None else optimizer.state_dict(),
        "others": plain,
        "random": _random_state(),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".dni-fx-", dir=path.parent) as aside:
            torch.save(content, Path(aside, "checkpoint"))
            torch.load(Path(aside, "checkpoint"), weights_only=True, mmap=True)  # raises if it cannot be read back
            os.replace(Path(aside, "checkpoint"), path)
    except (OSError, RuntimeError) as error:  # torch.save on a full disk: RuntimeError
        raise DniFxError(f"cannot write {path} ({getattr(error, 'strerror', None) or first_line(error)})") from None
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
    path = as_path(path)
    content = _read(path)
    optimizer = rewritten(net).dni.optimizer
    _check_same(path, net, content)
    rest = dict(content["others"])
    takers = dict(others) if optimizer is None else others | {"net.dni.optimizer": optimizer}
    states = rest if optimizer is None else rest | {"net.dni.optimizer": content["optimizer"]}
    for name, value in takers.items():
        if name not in states or not _stateful(value):
            held = ", ".join(rest) or "nothing"
            raise DniFxError(f"{path}: no state to load into {name}=; beside the net it holds {held}")
        _load(path, name, value, states[name])
    net.load_state_dict(content["net"])
    _set_buffers(net, content["buffers"])
    net.dni.resume(content["progress"])
    _set_random_state(content["random"])
    return {name: value for name, value in rest.items() if name not in others}


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


def _load(path: Path, name: str, value: Any, state: Any) -> None:
    """Load a state into an object of the person's; `path` and `name` are for the error message."""
    try:
        value.load_state_dict(state)
    except DniFxError:
        raise
    except Exception as error:
        raise DniFxError(f"{path}: {name} does not take the state that was saved: {first_line(error)}") from None


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


def _kind(net: DecoupledModule) -> dict[str, Any]:
    """The properties that a net must share with the saved one."""
    plan = net.dni.plan
    return {
        "model": f"{plan.model}, graph {plan.fingerprint}",
        "cuts": ", ".join(cut.after for cut in plan.cuts),
        "states": [[tensor.input for tensor in state.tensors] for state in plan.states],
        **asdict(net.dni.rewrite),
        "tensors": {k: (tuple(v.shape), v.dtype) for k, v in net.state_dict().items() if isinstance(v, Tensor)},
        "optimizer": type(net.dni.optimizer).__name__,
    }


def _check_same(path: Path, net: DecoupledModule, content: dict[str, Any]) -> None:
    """Raise a DniFxError that names the first property in which the net differs from the saved one."""
    saved, own = content["kind"], _kind(net)
    if saved == own:
        return
    what = next(key for key in own if saved.get(key) != own[key])
    before, now = saved.get(what), own[what]
    if what == "tensors":
        what = next(name for name in sorted({*before, *now}) if before.get(name) != now.get(name))
        before, now = before.get(what, "not there"), now.get(what, "not there")
    raise DniFxError(f"{path} is of another net: {what} was {before}, and is {now}")


def _set_buffers(net: DecoupledModule, buffers: dict[str, Tensor]) -> None:
    """Set the buffers that no state_dict holds."""
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    for name, buffer in buffers.items():
        owner, _, last = name.rpartition(".")
        module = net.get_submodule(owner)
        own = module._buffers.get(last)
        module._buffers[last] = buffer.to(device if own is None else own.device)


def _random_state() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "python": random.getstate(),
    }


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])
