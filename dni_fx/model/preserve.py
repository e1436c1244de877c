"""Run or trace the user's model, and restore its state afterwards."""

import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from types import CellType, FunctionType
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad

from dni_fx.errors import DniFxError
from dni_fx.model.captured import Captured
from dni_fx.model.sharded import resharded, states_in
from dni_fx.model.snapshot import LIBRARIES, Snapshot

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


_CachedFunction = type(cache(int))


@contextmanager
def preserved(model: nn.Module, *others: nn.Module) -> Iterator[Snapshot]:
    """Restore the state of modules, and the random number generators, at the end.

    The state is every parameter, buffer, gradient and attribute, with its value: forward may write to any of them.

    Raises:
        DniFxError: If something cannot be restored; all else is.
    """
    modules = [model, *others]
    for captured in map(_captured, [model, *others]):
        if captured is not None and captured.original is not None:
            modules.append(captured.original)  # its children are children of the captured module too
    with resharded(states_in(*modules)), _restored(model, modules) as before:
        yield before


@contextmanager
def _restored(model: nn.Module, modules: Sequence[nn.Module]) -> Iterator[Snapshot]:
    before = Snapshot(*modules)
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    python, numpy = random.getstate(), _numpy_random()
    depth = torch._C._functorch.get_dynamic_layer_stack_depth()
    try:
        with torch.random.fork_rng(devices=devices):
            yield before
    except BaseException:
        _close_forward_ad()
        raise
    finally:
        # torch.export leaves a `torch.func` transform open if the transform fails.
        torch._C._functorch.pop_dynamic_layer_stack_and_undo_to_depth(depth)
        failed = before.restore()
        classes = {cls for m in before.modules for cls in type(m).__mro__ if _package(cls) not in LIBRARIES}
        files = {sys.modules[cls.__module__] for cls in classes if cls.__module__ in sys.modules}
        for namespace in (*classes, *files):
            _clear_caches(vars(namespace))
        random.setstate(python)
        if numpy is not None:
            sys.modules["numpy"].random.set_state(numpy)
        if failed:
            raise DniFxError(f"{type(model).__name__} could not be left as it was: {'; '.join(failed[:3])}")


def _close_forward_ad() -> None:
    """Close the level of forward-mode differentiation that a graph of torch.export leaves open if it fails."""
    if forward_ad._current_level < 0:
        with suppress(RuntimeError):  # none is open
            torch._C._exit_dual_level(level=0)


def _package(cls: type) -> str:
    return cls.__module__.partition(".")[0]


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
