"""A training run in one file, from which it goes on bit for bit."""

import os
import pickle
import random
import re
import tempfile
from pathlib import Path
from typing import Any

import torch

from dni_fx.errors import DniFxError
from dni_fx.module import DecoupledModule
from dni_fx.stepping import SegmentOptimizer

__all__ = ["load_checkpoint", "save_checkpoint"]

_FORMAT = "dni-fx checkpoint 1"


def save_checkpoint(path: str | Path, net: DecoupledModule, **others: Any) -> None:
    """Write all that a run consists of: call it between two steps.

    That is: parameters and buffers, of the synthesizers too; the optimizers of `step="segment"`; steps counted, states
    carried and metrics of the synthesizers; the random generators of torch (CPU and CUDA) and of Python.

    Args:
        path: Of a file, which is replaced once the new one is there whole.
        net: What `dni_fx.transform` or `dni_fx.load` returned.
        others: By name, what else there is: an optimizer, a scheduler, a GradScaler, whatever has `state_dict()`; and
            plain values, such as the number of the epoch.

    Raises:
        DniFxError: If the file cannot be written, or gradients are being accumulated.
    """
    path = Path(path)
    optimizer = _checked(net).dni.optimizer
    if isinstance(optimizer, SegmentOptimizer) and optimizer.accumulates:
        raise DniFxError(f"gradients are being accumulated: save after every {optimizer.accumulate} passes")
    content = {
        "format": _FORMAT,
        "cuts": _cuts(net),
        "net": net.state_dict(),
        "progress": net.dni.progress(),
        "optimizer": None if optimizer is None else optimizer.state_dict(),
        "others": {name: value.state_dict() if _stateful(value) else value for name, value in others.items()},
        "random": _random_state(),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as aside:
            torch.save(content, Path(aside, path.name))
            _check_readable(Path(aside, path.name), others)
            os.replace(Path(aside, path.name), path)
    except OSError as error:
        raise DniFxError(f"cannot write {path} ({error.strerror or error})") from None


def load_checkpoint(path: str | Path, net: DecoupledModule, **others: Any) -> dict[str, Any]:
    """Go on from a file that `save_checkpoint` wrote.

    Args:
        path: The file; no code in it is run.
        net: Made as the one that was saved: of the same model, with the same cuts and synthesizers.
        others: By the names that they were saved under, what is to take its `state_dict()` back.

    Returns:
        What else was saved, by name: plain values, and states that nothing was given for.

    Raises:
        DniFxError: If there is no such file, or it is of another net, or lacks one of `others`. Nothing has changed
            then.
    """
    content = _read(Path(path))
    _check_same(path, _checked(net), content)
    rest = dict(content["others"])
    for name, value in others.items():
        if name not in rest or not _stateful(value):
            held = ", ".join(rest) or "nothing"
            raise DniFxError(f"{path}: no state to load into {name}=; beside the net it holds {held}")
    net.load_state_dict(content["net"])
    if net.dni.optimizer is not None:
        net.dni.optimizer.load_state_dict(content["optimizer"])
    for name, value in others.items():
        value.load_state_dict(rest.pop(name))
    net.dni.resume(content["progress"])
    _set_random_state(content["random"])
    return rest


def _checked(net: DecoupledModule) -> DecoupledModule:
    if not isinstance(net, DecoupledModule):
        raise DniFxError(f"expected what dni_fx.transform returned, not a {type(net).__name__}")
    return net


def _stateful(value: Any) -> bool:
    return hasattr(value, "state_dict") and hasattr(value, "load_state_dict")


def _check_readable(path: Path, others: dict[str, Any]) -> None:
    """Files are read without running code in them: what is not made of plain values and tensors cannot be saved."""
    try:
        torch.load(path, weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        what = re.search(r"GLOBAL (\S+)", str(error))
        kind = f"a {what[1]}" if what else "something"
        raise DniFxError(
            f"{', '.join(others)}: {kind} is neither a plain value nor a tensor, and cannot be saved"
        ) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise DniFxError(f"cannot read {path} ({error.strerror or error})") from None
    except Exception:  # what torch.load and pickle raise on damaged files is of many kinds
        raise DniFxError(f"{path} is damaged, or no checkpoint") from None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise DniFxError(f"{path} is not what this version's dni_fx.save_checkpoint writes")
    return content


def _cuts(net: DecoupledModule) -> list[str]:
    return [net.dni.plan.fingerprint, *(cut.after for cut in net.dni.plan.cuts)]


def _check_same(path: str | Path, net: DecoupledModule, content: dict[str, Any]) -> None:
    if content["cuts"] != _cuts(net):
        raise DniFxError(
            f"{path} is of another net: cut after {', '.join(content['cuts'][1:])}, this one after "
            f"{', '.join(_cuts(net)[1:])}" + (", of another model" if content["cuts"][0] != _cuts(net)[0] else "")
        )
    stored, own = ({k: getattr(v, "shape", None) for k, v in d.items()} for d in (content["net"], net.state_dict()))
    strange = [name for name in sorted({*stored, *own}) if stored.get(name) != own.get(name)]
    if strange:
        raise DniFxError(f"{path} is of another net: {strange[0]} differs, or is in one of them only")
    if (content["optimizer"] is None) != (net.dni.optimizer is None):
        with_it, without = ("this net", path) if content["optimizer"] is None else (path, "this net")
        raise DniFxError(f'{with_it} has the optimizers of step="segment", {without} has not')


def _random_state() -> dict[str, Any]:
    return {"torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all(), "python": random.getstate()}


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    random.setstate(state["python"])
