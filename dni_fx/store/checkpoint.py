"""A training run in one file, from which it goes on bit for bit."""

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
from dni_fx.runtime import DecoupledModule, SegmentOptimizer

__all__ = ["load_checkpoint", "save_checkpoint"]

_FORMAT = "dni-fx checkpoint 1"


def save_checkpoint(path: str | Path, net: DecoupledModule, /, **others: Any) -> None:
    """Write what a run consists of: call it between two steps.

    That is: parameters and all buffers, of the synthesizers too; the optimizers of `step="segment"`, or one of the
    synthesizers' own; their steps, carried states and metrics; the random generators of torch (CPU and CUDA), numpy
    and Python.

    Args:
        path: Of a file, which is replaced once the new one is there whole.
        net: What `dni_fx.transform` or `dni_fx.load` returned.
        others: By name, what else there is: an optimizer, a scheduler, a GradScaler, whatever has `state_dict()`; and
            plain values, such as the number of the epoch.

    Raises:
        DniFxError: If the file cannot be written, or gradients are being accumulated.
    """
    path = Path(os.path.realpath(Path(path).expanduser()))
    optimizer = _checked(net).dni.optimizer
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
            torch.load(Path(aside, "checkpoint"), weights_only=True, mmap=True)  # what cannot be read is no checkpoint
            os.replace(Path(aside, "checkpoint"), path)
    except (OSError, RuntimeError) as error:  # torch.save on a full disk: RuntimeError
        raise DniFxError(f"cannot write {path} ({getattr(error, 'strerror', None) or first_line(error)})") from None
    except Exception:  # of pickle, of many kinds
        culprits = [f"{name}=" for name, value in plain.items() if not _plain(value)]
        what = ", ".join(culprits) or "a parameter group, or the extra state of a module,"
        raise DniFxError(f"{what} holds what is neither a plain value nor a tensor, and cannot be saved") from None


def load_checkpoint(path: str | Path, net: DecoupledModule, /, **others: Any) -> dict[str, Any]:
    """Go on from a file that `save_checkpoint` wrote.

    Args:
        path: The file; no code in it is run.
        net: Made as the one that was saved: of the same model, with the same cuts, synthesizers and settings.
        others: By the names that they were saved under, what is to take its `state_dict()` back.

    Returns:
        What else was saved, by name: plain values, and states that nothing was given for.

    Raises:
        DniFxError: If there is no such file, or it is damaged, or of another net, or does not fit one of `others`.
    """
    path = Path(path).expanduser()
    content = _read(path)
    optimizer = _checked(net).dni.optimizer
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


def _checked(net: DecoupledModule) -> DecoupledModule:
    if not isinstance(net, DecoupledModule):
        raise DniFxError(f"expected what dni_fx.transform returned, not a {type(net).__name__}")
    return net


def _stateful(value: Any) -> bool:
    return hasattr(value, "state_dict") and hasattr(value, "load_state_dict")


def _unwrapped(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _plain(value: Any) -> bool:
    """Whether files can hold it: they are read without running code in them."""
    try:
        file = io.BytesIO()
        torch.save(value, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception:  # of pickle, of many kinds
        return False
    return True


def _load(path: Path, name: str, value: Any, state: Any) -> None:
    try:
        value.load_state_dict(state)
    except DniFxError:
        raise
    except Exception as error:
        raise DniFxError(f"{path}: {name} does not take the state that was saved: {first_line(error)}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
            damaged = archive.testzip()
        content = torch.load(path, map_location="cpu", weights_only=True) if damaged is None else None
    except OSError as error:
        raise DniFxError(f"cannot read {path} ({error.strerror or error})") from None
    except Exception:  # on damaged files, of many kinds
        raise DniFxError(f"{path} is damaged, or no checkpoint") from None
    if damaged is not None:
        raise DniFxError(f"{path} is damaged: the checksum of {damaged} is wrong")
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise DniFxError(f"{path} is not what this version's dni_fx.save_checkpoint writes")
    return content


def _kind(net: DecoupledModule) -> dict[str, Any]:
    """What a net has to agree in, for a run to go on."""
    plan = net.dni.plan
    assert plan.rewrite is not None
    return {
        "model": f"{plan.model}, graph {plan.fingerprint}",
        "cuts": ", ".join(cut.after for cut in plan.cuts),
        "states": [[tensor.input for tensor in state.tensors] for state in plan.states],
        **asdict(plan.rewrite),
        "tensors": {k: (tuple(v.shape), v.dtype) for k, v in net.state_dict().items() if isinstance(v, Tensor)},
        "optimizer": type(net.dni.optimizer).__name__,
    }


def _check_same(path: Path, net: DecoupledModule, content: dict[str, Any]) -> None:
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
    """Those that no state_dict holds."""
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
