"""Fake tensors, which have shapes and no values: a model may hold them already."""

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

__all__ = ["any_fake", "copied", "fake_mode", "placed", "quiet"]


def fake_mode(tensors: Any) -> FakeTensorMode:
    """The mode that is active or that the tensors are of; else a new one. Torch does not mix two of them."""
    found: FakeTensorMode | None = detect_fake_mode(tensors)
    return FakeTensorMode(allow_non_fake_inputs=True) if found is None else found


def any_fake(tensors: Iterable[Tensor]) -> bool:
    """Whether one of the tensors has no values."""
    return any(isinstance(tensor, FakeTensor) for tensor in tensors)


def copied(value: nn.Module | Tensor, memo: dict[int, Any]) -> Any:
    """`copy.deepcopy(value, memo)`, by which a fake tensor would get a mode of its own."""
    for tensor in _tensors(value):
        if isinstance(tensor, FakeTensor):
            memo.setdefault(id(tensor), _like(tensor, tensor.detach().clone()))
    return copy.deepcopy(value, memo)


def placed(module: nn.Module, dtype: torch.dtype | None, device: torch.device | str | None = None) -> nn.Module:
    """`module.to(device, dtype)` for a new module; its tensors may be fake, which torch does not convert in place."""
    if not any_fake(_tensors(module)):
        return module.to(device=device, dtype=dtype)
    known: dict[int, Any] = {}
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    table[name] = known.setdefault(id(tensor), _converted(tensor, dtype, device))
    return module


def _converted(tensor: Tensor, dtype: torch.dtype | None, device: torch.device | str | None) -> Tensor:
    return _like(tensor, tensor.detach().to(device=device, dtype=dtype if tensor.is_floating_point() else None))


def _like(tensor: Tensor, value: Tensor) -> Tensor:
    return nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value


def _tensors(value: nn.Module | Tensor) -> list[Tensor]:
    return [*value.parameters(), *value.buffers()] if isinstance(value, nn.Module) else [value]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the model's warnings, and torch's logged tracebacks of operations that fail on fake tensors."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before
