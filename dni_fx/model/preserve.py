"""Look at a person's model without changing it."""

import random
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from dni_fx.model.captured import Captured

__all__ = ["in_train_mode", "preserved", "seed"]


def in_train_mode(model: nn.Module) -> None:
    """Put a model into train mode; modules that are in eval mode inside of a training model stay there."""
    captured = _captured(model)
    own = model if captured is None else captured.original
    if not model.training or (own is not None and type(own).train is not nn.Module.train):
        model.train()


def seed(number: int) -> None:
    """Seed every generator of random numbers. As torch.manual_seed, which without CUDA formats a stack at each call."""
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(number)
    random.seed(number)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(number % 2**32)


def _captured(model: nn.Module) -> Captured | None:
    """What is known of the capture that `model` came from; None: it is the person's own."""
    captured: Captured | None = getattr(model, "dni_captured", None)
    return captured


_NOT_THEIRS = ("torch", "builtins", "dni_fx")

_Cached = type(cache(int))


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Undo, at the end, whatever a run or a trace did to the model's attributes, buffers, gradients and random numbers.

    Values of parameters are not copied, for they are large: nothing here runs an optimizer. Those of embeddings that
    renormalise themselves in forward are.
    """
    captured = _captured(model)
    modules = list(model.modules())
    if captured is not None and captured.original is not None:
        modules.append(captured.original)  # its children are those of `model`
    attributes = [dict(m.__dict__) for m in modules]
    dicts = [{k: dict(v) for k, v in a.items() if type(v) in (dict, OrderedDict)} for a in attributes]
    lists = [(v, list(v)) for a in attributes for v in a.values() if type(v) is list]
    tensors = [_Kept(t) for t in _written_in_forward(model, attributes)]
    grads = [(p, p.grad) for p in model.parameters()]
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    python, numpy = random.getstate(), _numpy_random()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        for module, saved, held in zip(modules, attributes, dicts, strict=True):
            module.__dict__.clear()
            module.__dict__.update(saved)
            for name, content in held.items():
                saved[name].clear()
                saved[name].update(content)
        for one, elements in lists:
            one[:] = elements
        for tensor in tensors:
            tensor.put_back()
        for parameter, grad in grads:
            parameter.grad = grad
        classes = {cls for m in modules for cls in type(m).__mro__ if cls.__module__.split(".")[0] not in _NOT_THEIRS}
        homes = {sys.modules[cls.__module__] for cls in classes if cls.__module__ in sys.modules}
        for holder in (*classes, *homes):
            _clear_caches(vars(holder))
        random.setstate(python)
        if numpy is not None:
            sys.modules["numpy"].random.set_state(numpy)


class _Kept:
    """A tensor with the value that it has now."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.value = tensor, tensor.detach().clone()
        self.tracked = tensor.requires_grad

    def put_back(self) -> None:
        # Whatever its version says: batch norm writes without a mark. To a tensor that repeats itself nobody can write.
        if any(step == 0 and size > 1 for step, size in zip(self.tensor.stride(), self.tensor.shape, strict=True)):
            return
        with torch.no_grad():
            if self.tensor.requires_grad and not self.tracked:  # something that carries gradient was written to it
                self.tensor.detach_()
            self.tensor.copy_(self.value)


def _written_in_forward(model: nn.Module, attributes: list[dict[str, Any]]) -> list[Tensor]:
    """Buffers, tensors that are plain attributes, and embeddings with a largest norm."""
    found = list(model.buffers())
    found += [v for a in attributes for v in a.values() if isinstance(v, Tensor)]
    found += [m.weight for m in model.modules() if isinstance(m, nn.Embedding) and m.max_norm is not None]
    return found


def _clear_caches(names: Mapping[str, Any]) -> None:
    """Forget what functions under `lru_cache` have seen: what a trace gives is no tensor for later."""
    for held in list(names.values()):
        function = held.__func__ if isinstance(held, staticmethod | classmethod) else held
        closure = function.__closure__ or () if isinstance(function, FunctionType) else ()
        held_inside = [cell.cell_contents for cell in closure if _filled(cell)]
        for one in (function, *held_inside):  # the decorated function, or one that a wrapper holds
            if isinstance(one, _Cached):
                one.cache_clear()


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _numpy_random() -> Any:
    numpy = sys.modules.get("numpy")
    return None if numpy is None else numpy.random.get_state()
