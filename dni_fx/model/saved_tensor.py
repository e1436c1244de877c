"""A tensor with a copy of its value, shape, storage, gradient and flags, and the way back to them."""

import contextlib
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import is_lazy

__all__ = ["SavedTensor"]


_earlier: "WeakValueDictionary[int, SavedTensor]" = WeakValueDictionary()  # the earliest of each tensor, by its id


class SavedTensor:
    """A tensor and its state at one time. `restore` gives the same tensor object the same storage and value.

    While one is kept, later ones of the same tensor with the same value share its copy of the value.
    """

    def __init__(self, name: str, tensor: Tensor) -> None:
        self.name, self.tensor = name, tensor
        self.required_grad = tensor.requires_grad
        self.grad = tensor.grad if tensor.is_leaf else None
        self.hooks = _hooks(tensor)
        self._storage: Tensor | None = None  # shares the storage; `data`, so that a restored value is no new version
        self._value: Tensor | None = None  # None for a tensor that has no value yet, or no dense one
        if is_lazy(tensor) or tensor.is_meta or tensor.is_nested or isinstance(tensor, FakeTensor):
            return
        self._storage = tensor.data
        self._layout = _layout(tensor)
        self._bytes = 0 if self._layout is None else tensor.untyped_storage().nbytes()
        known = _earlier.setdefault(id(tensor), self)._value
        if known is not None and _equal(self._storage, known):
            self._value = known  # to compare takes less time and memory than a copy
            return
        with torch.no_grad(), contextlib.suppress(NotImplementedError):
            self._value = self._storage.clone()

    def has_changed(self) -> bool:
        """Whether the tensor has another storage, shape or value than before."""
        if self._storage is None or self._value is None:
            return False
        return _layout(self.tensor) != self._layout or not _equal(self._storage, self._value)

    def restore(self) -> None:
        if self.tensor.requires_grad and not self.required_grad and not self.tensor.is_leaf:
            self.tensor.detach_()  # forward wrote a value with gradient into it
        if self._storage is not None:
            self._restore_value(self._storage)
        if self.tensor.requires_grad != self.required_grad:
            self.tensor.requires_grad_(self.required_grad)
        if self.tensor.is_leaf and self.tensor.grad is not self.grad:
            self.tensor.grad = self.grad
        for name, hooks in self.hooks.items():
            if getattr(self.tensor, name) != hooks:
                setattr(self.tensor, name, hooks)

    def _restore_value(self, storage: Tensor) -> None:
        if self._layout is not None and storage.untyped_storage().nbytes() < self._bytes:
            storage.untyped_storage().resize_(self._bytes)
        if _layout(self.tensor) != self._layout:
            self.tensor.data = storage
        # `_version` does not show every write: batch norm does not count its own. Expanded tensors cannot be written.
        if self._value is not None and not _is_expanded(storage) and not _equal(storage, self._value):
            storage.copy_(self._value)


def _hooks(tensor: Tensor) -> dict[str, Any]:
    """Copies of the hooks of a leaf, by the name of their attribute: forward may register more."""
    if not tensor.is_leaf:
        return {}
    hooks = {name: getattr(tensor, name, None) for name in ("_backward_hooks", "_post_accumulate_grad_hooks")}
    return {name: None if value is None else value.copy() for name, value in hooks.items()}


def _layout(tensor: Tensor) -> tuple[Any, ...] | None:
    """The storage of a tensor, and its place there; None for a tensor without one, such as a sparse tensor."""
    try:
        storage = tensor.untyped_storage()._cdata
        return storage, tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype, tensor.device
    except (NotImplementedError, RuntimeError):
        return None


def _equal(tensor: Tensor, other: Tensor) -> bool:
    try:
        return torch.equal(tensor, other)
    except (NotImplementedError, RuntimeError):  # sparse tensors cannot be compared
        return False


def _is_expanded(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and any(
        step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True)
    )
