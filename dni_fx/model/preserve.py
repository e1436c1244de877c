"""Run or trace the user's model, and restore its state afterwards."""

import random
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import CellType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from dni_fx.model.captured import Captured

__all__ = ["in_train_mode", "preserved", "seed"]


def in_train_mode(model: nn.Module) -> None:
    """Put a model into train mode. If the model already is, its submodules that are in eval mode stay so."""
    captured = _captured(model)
    original = model if captured is None else captured.original
    if not model.training or (original is not None and type(original).train is not nn.Module.train):
        model.train()


def seed(number: int) -> None:
    """Seed the random number generators of PyTorch, Python and numpy.

    `torch.manual_seed` is not used: without CUDA it formats a stack trace at each call, which is slow.
    """
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(number)
    random.seed(number)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(number % 2**32)


def _captured(model: nn.Module) -> Captured | None:
    """The facts of the capture, if `model` is a captured module; None for the user's own model."""
    captured = getattr(model, "dni_captured", None)
    return captured if isinstance(captured, Captured) else None


_LIBRARIES = ("torch", "builtins", "dni_fx")  # packages whose caches are left alone

_CachedFunction = type(cache(int))


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Restore the model's attributes, buffers and gradients, and the random number generators, at the end.

    Parameters are not copied, for they are large, and no optimizer runs inside this context. The exception is the
    weight of an embedding with `max_norm`, which forward renormalises.
    """
    captured = _captured(model)
    modules = list(model.modules())
    if captured is not None and captured.original is not None:
        modules.append(captured.original)  # its children are children of `model` too
    attributes = [dict(m.__dict__) for m in modules]
    dicts = [{k: dict(v) for k, v in a.items() if type(v) in (dict, OrderedDict)} for a in attributes]
    lists = [(v, list(v)) for a in attributes for v in a.values() if type(v) is list]
    tensors = [_SavedTensor(t) for t in _written_in_forward(model, attributes)]
    grads = [(p, p.grad) for p in model.parameters()]
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    python, numpy = random.getstate(), _numpy_random()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        for module, saved, saved_dicts in zip(modules, attributes, dicts, strict=True):
            module.__dict__.clear()
            module.__dict__.update(saved)
            for name, content in saved_dicts.items():
                saved[name].clear()
                saved[name].update(content)
        for attribute, elements in lists:
            attribute[:] = elements
        for tensor in tensors:
            tensor.restore()
        for parameter, grad in grads:
            parameter.grad = grad
        classes = {cls for m in modules for cls in type(m).__mro__ if cls.__module__.split(".")[0] not in _LIBRARIES}
        files = {sys.modules[cls.__module__] for cls in classes if cls.__module__ in sys.modules}
        for namespace in (*classes, *files):
            _clear_caches(vars(namespace))
        random.setstate(python)
        if numpy is not None:
            sys.modules["numpy"].random.set_state(numpy)


class _SavedTensor:
    """A tensor and a copy of its value."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.value = tensor, tensor.detach().clone()
        self.required_grad = tensor.requires_grad

    def restore(self) -> None:
        # `_version` does not show every write: batch norm does not count its own. Expanded tensors cannot be written.
        if any(step == 0 and size > 1 for step, size in zip(self.tensor.stride(), self.tensor.shape, strict=True)):
            return
        with torch.no_grad():
            if self.tensor.requires_grad and not self.required_grad:  # forward wrote a value with gradient into it
                self.tensor.detach_()
            self.tensor.copy_(self.value)


def _written_in_forward(model: nn.Module, attributes: list[dict[str, Any]]) -> list[Tensor]:
    """Tensors that forward may write to: buffers, plain attributes, and the weights of embeddings with `max_norm`."""
    found = list(model.buffers())
    found += [v for a in attributes for v in a.values() if isinstance(v, Tensor)]
    found += [m.weight for m in model.modules() if isinstance(m, nn.Embedding) and m.max_norm is not None]
    return found


def _clear_caches(names: Mapping[str, Any]) -> None:
    """Clear the caches of functions under `lru_cache`: the proxies that a trace leaves there are no tensors."""
    for value in list(names.values()):
        function = value.__func__ if isinstance(value, staticmethod | classmethod) else value
        closure = function.__closure__ or () if isinstance(function, FunctionType) else ()
        wrapped = [cell.cell_contents for cell in closure if not _is_empty(cell)]
        for candidate in (function, *wrapped):
            if isinstance(candidate, _CachedFunction):
                candidate.cache_clear()


def _is_empty(cell: CellType) -> bool:
    try:
        return cell.cell_contents is None
    except ValueError:  # the variable is not assigned yet
        return True


def _numpy_random() -> Any:
    numpy = sys.modules.get("numpy")
    return None if numpy is None else numpy.random.get_state()
