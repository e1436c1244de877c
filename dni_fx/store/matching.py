"""Whether a checkpoint fits a net and the objects that it is loaded into; all that can be seen before they change."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dni_fx.errors import DniFxError
from dni_fx.ops import parameters_of
from dni_fx.runtime import DecoupledModule, SegmentOptimizer

__all__ = ["check_fits", "check_structure", "check_taker", "kind_of", "signature_of"]

_PARTS: dict[str, type | tuple[type, ...]] = {
    "net": dict,
    "kind": dict,
    "buffers": dict,
    "progress": dict,
    "optimizer": (dict, type(None)),
    "others": dict,
    "random": dict,
}

# Entries of the states of torch's optimizers that are shaped like the parameter.
_LIKE_PARAMETER = (
    "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg", "acc_delta",
    "sum", "prev", "step_size", "ax",
)  # fmt: skip

_ABSENT = "not there"


def kind_of(net: DecoupledModule) -> dict[str, Any]:
    """The properties, beside its tensors, that a net must share with the saved one."""
    plan = net.dni.plan
    rewrite = {key: value for key, value in asdict(net.dni.rewrite).items() if key not in ("named", "paths")}
    return {
        "model": f"{plan.model}, graph {plan.fingerprint}",
        "cuts": ", ".join(cut.after for cut in plan.cuts),
        "states": [[tensor.input for tensor in state.tensors] for state in plan.states],
        **rewrite,
        "optimizer": type(net.dni.optimizer).__name__,
        "nodes": [name for segment in plan.segments for name in segment.nodes],
    }


def signature_of(value: object) -> dict[str, Any]:
    """The class of an object with a state, and the shapes of an optimizer's parameters by group."""
    groups = [group for one in _optimizers_in(value) for group in one.param_groups]
    return {"class": type(value).__name__, "groups": [[list(p.shape) for p in group["params"]] for group in groups]}


def check_structure(path: Path, content: Mapping[str, Any]) -> None:
    """Raise a DniFxError if a part of a checkpoint is missing, or is of another type."""
    for name, kind in _PARTS.items():
        if not isinstance(content.get(name, 0), kind):
            raise DniFxError(f"{path} is damaged: its part {name!r} is missing, or is a {type(content.get(name))}")


def check_fits(path: Path, net: DecoupledModule, content: Mapping[str, Any]) -> None:
    """Raise a DniFxError that names the first property in which the net differs from the saved one."""
    different = next(_differences(net, content), None)
    if different is not None:
        raise DniFxError(f"{path} is of another net: {different}")
    wrong = next(_wrong_states(net, content["buffers"], content["progress"]), None)
    if wrong is not None:
        raise DniFxError(f"{path} is damaged: it has no state, or a wrong one, for {wrong}")


def _wrong_states(net: DecoupledModule, buffers: Mapping[str, Any], progress: Mapping[str, Any]) -> Iterator[str]:
    """Names of buffers that no state_dict holds, and of crossings, without a state in a checkpoint that fits."""
    persistent = net.state_dict()
    for name in {**dict(net.named_buffers()), **buffers}:
        if name not in persistent and not isinstance(buffers.get(name), Tensor):
            yield name
    for name, own in net.dni.progress().items():
        saved = progress.get(name)
        fits = isinstance(saved, list) if name == "replay" else _is_progress(saved, own)
        if not fits:
            yield f"net.dni.{name}"


def check_taker(path: Path, name: str, value: object, state: Any, saved: Mapping[str, Any] | None) -> None:
    """Raise a DniFxError if the state of an object is of another class, or of an optimizer of other parameters.

    Args:
        saved: What `signature_of` returned for the saved object; None: the file is from an earlier version.
    """
    own = signature_of(value)
    if saved is not None and saved != own:
        what = f"that is of a {saved['class']}, and this is a {own['class']}"
        if saved["groups"] != own["groups"]:
            what = _different_group(saved["groups"], own["groups"])
        raise DniFxError(f"{path}: {name} does not take the state that was saved: {what}")
    if isinstance(value, torch.optim.Optimizer) and not isinstance(value, SegmentOptimizer):
        _check_optimizer_state(path, name, state, parameters_of([value]))


def _optimizers_in(value: object) -> list[torch.optim.Optimizer]:
    if isinstance(value, SegmentOptimizer):
        return [one for own in value.optimizers for one in own]
    return [value] if isinstance(value, torch.optim.Optimizer) else []


def _different_group(saved: list[Any], own: list[Any]) -> str:
    """The first difference between the parameters of two optimizers, as shapes by group."""
    if len(saved) != len(own):
        return f"loaded state dict has {len(saved)} parameter groups, and this optimizer has {len(own)}"
    k = next(k for k in range(len(own)) if saved[k] != own[k])
    if len(saved[k]) != len(own[k]):
        return f"loaded state dict has {len(saved[k])} parameters in group {k}, and this optimizer has {len(own[k])}"
    i = next(i for i in range(len(own[k])) if saved[k][i] != own[k][i])
    return f"loaded state dict has shape {saved[k][i]} for parameter {i} of group {k}, and this has {own[k][i]}"


def _check_optimizer_state(path: Path, name: str, state: Any, parameters: Sequence[Tensor]) -> None:
    """Raise a DniFxError if an entry of an optimizer's state does not have the shape of its parameter."""
    entries = state.get("state") if isinstance(state, dict) else None
    if not isinstance(entries, dict) or not isinstance(state.get("param_groups"), list):
        raise DniFxError(f"{path} is damaged: the state of {name} is not that of an optimizer")
    for index, one in entries.items():
        if not isinstance(one, dict) or index not in range(len(parameters)):
            raise DniFxError(f"{path} is damaged: the state of {name} has a wrong entry {index!r}")
        for key in _LIKE_PARAMETER:
            if isinstance(one.get(key), Tensor) and one[key].shape != parameters[index].shape:
                was, now = list(one[key].shape), list(parameters[index].shape)
                raise DniFxError(f"{path}: {name} has {key} of shape {was} for parameter {index} of shape {now}")


def _differences(net: DecoupledModule, content: Mapping[str, Any]) -> Iterator[str]:
    """Each property in which a net differs from the saved one, with both values; the plainest come first."""
    saved, own = dict(content["kind"]), kind_of(net)
    model, _, fingerprint = str(saved.pop("model", "")).partition(", graph ")
    own.pop("model")
    nodes = saved.pop("nodes", None), own.pop("nodes")
    if model != net.dni.plan.model:
        yield f"the model was a {model}, and is a {net.dni.plan.model}"
    yield from _different_tensors(content["net"], net.state_dict(), of_model=True)
    saved["synthesizers"], own["synthesizers"] = _comparable(saved.get("synthesizers"), net)
    for key, now in own.items():
        before = saved.get(key, now)
        if key == "training" and isinstance(before, dict):
            yield from (f"{k} was {before[k]}, and is {v}" for k, v in now.items() if before.get(k, v) != v)
        elif before != now:
            yield f"{key} was {before}, and is {now}"
    counters = {f"dni.{name}.steps" for name in net.dni.crossings}  # a file of an older version has none
    of_net = {name: value for name, value in net.state_dict().items() if name not in counters}
    of_file = {name: value for name, value in content["net"].items() if name not in counters}
    yield from _different_tensors(of_file, of_net, of_model=False)
    if nodes[0] is not None:
        pairs = enumerate(zip(nodes[0], nodes[1], strict=False))
        yield from (f"operation {k} of its forward was {was}, and is {now}" for k, (was, now) in pairs if was != now)
        if len(nodes[0]) != len(nodes[1]):
            yield f"its forward had {len(nodes[0])} operations, and has {len(nodes[1])}"
    if fingerprint != net.dni.plan.fingerprint:
        yield "its forward computes other operations, or the same with other arguments"


def _comparable(saved: Any, net: DecoupledModule) -> tuple[Any, Any]:
    """The names of synthesizers, but for those of the person's with options: earlier versions had other names."""
    rewrite = net.dni.rewrite
    own = {key: name for key, name in rewrite.synthesizers.items() if rewrite.named or "(" not in name}
    skipped = rewrite.synthesizers.keys() - own.keys()
    known = {key: name for key, name in saved.items() if key not in skipped} if isinstance(saved, dict) else saved
    return known, own


def _different_tensors(saved: Mapping[str, Any], own: Mapping[str, Any], *, of_model: bool) -> Iterator[str]:
    """Each entry of the state_dict that has another shape or dtype; of the model, or under `dni`."""
    for name in sorted({*saved, *own}):
        before, now = (_described(one[name]) if name in one else _ABSENT for one in (saved, own))
        if before != now and of_model != name.startswith("dni."):
            yield f"{name} was {before}, and is {now}"


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return "no tensor"
    return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def _is_progress(saved: Any, own: Mapping[str, Any]) -> bool:
    """Whether this is what `Crossing.progress` returns, with all entries of the net's own."""
    if not isinstance(saved, dict) or type(saved.get("steps")) is not int or not own.keys() <= saved.keys():
        return False
    rows = all(isinstance(saved.get(key), Tensor | None) for key in ("rows", "ended"))
    return rows and isinstance(saved.get("carried"), tuple | list | None)
