"""Counters for one run: FLOPs, the bytes that autograd saves, autograd's sequence number."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["Saving", "flop_counter", "sequence_number", "storage_key"]


class _OneModule:
    """Replaces the tracker of FlopCounterMode: its hooks on every module cost time and break reversible layers."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def flop_counter() -> FlopCounterMode:
    """A counter of the total FLOPs, not by module."""
    aten = torch.ops.aten
    counter = FlopCounterMode(
        display=False,
        custom_mapping={aten.mkldnn_rnn_layer: _layer_flops, aten._cudnn_rnn: _stack_flops, aten.lstm: _stack_flops},
    )
    counter.mod_tracker = _OneModule()  # type: ignore[assignment]
    return counter


def _layer_flops(sequence: Any, w_input: Any, w_hidden: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """FLOPs of a recurrent layer: each step of each row is multiplied with the weights; shapes (T, N, features)."""
    flops: int = 2 * math.prod(sequence[:2]) * (math.prod(w_input) + math.prod(w_hidden))
    return flops


def _stack_flops(sequence: Any, weights: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    flops: int = 2 * math.prod(sequence[:2]) * sum(math.prod(w) for w in weights if len(w) == 2)
    return flops


def sequence_number() -> int:
    """The number of the next node that autograd makes."""
    marker: Any = torch.zeros((), requires_grad=True).clone().grad_fn
    return int(marker._sequence_nr())


class Saving(saved_tensors_hooks):
    """Counts the memory that autograd keeps inside a `with` block, each storage once.

    A new storage may have the address of a freed one, and is then not counted: keep the results alive in the block.

    Args:
        ignore: Tensors that are always there: parameters, buffers, inputs.
    """

    def __init__(self, ignore: Iterable[Tensor]) -> None:
        super().__init__(self._pack, lambda tensor: tensor)
        self._seen = {storage_key(t) for t in ignore}
        self._ignored = frozenset(self._seen)
        self._fresh: dict[int, int] = {}
        self._again: dict[int, int] = {}
        self._alias: dict[int, int] = {}
        self.unknown = False  # an operator has a workspace whose size the fake kernel does not report

    def _pack(self, tensor: Tensor) -> Tensor:
        key = self.key(tensor)
        size = tensor.untyped_storage().nbytes()
        self.unknown |= not size and tensor.dtype in (torch.uint8, torch.int8)
        if key not in self._seen:
            self._seen.add(key)
            self._fresh[key] = size
        elif key not in self._ignored and key not in self._fresh:
            self._again[key] = size
        return tensor.detach()  # an output that its own node saves would hold itself, and everything below it

    def alias(self, originals: Sequence[Tensor], copies: Sequence[Tensor]) -> None:
        """Count each copy as its original; the caller keeps both alive."""
        keys = [self.key(t) for t in originals]  # an original may be a copy itself
        self._alias.update({storage_key(c): key for c, key in zip(copies, keys, strict=True)})

    def key(self, tensor: Tensor) -> int:
        """The key of the tensor's storage; for a copy, the key of the original's storage."""
        key = storage_key(tensor)
        return self._alias.get(key, key)

    def take(self) -> dict[int, int]:
        """Bytes newly saved since the last call, by storage."""
        fresh, self._fresh = self._fresh, {}
        self.unknown = False
        return fresh

    def take_again(self) -> dict[int, int]:
        """Bytes saved since the last call that had been saved before, by storage."""
        again, self._again = self._again, {}
        return again

    def is_innermost(self, hooks: Any) -> bool:
        """Whether `hooks`, autograd's innermost hooks, are the hooks of this counter."""
        return hooks is not None and hooks[0] == self.pack_hook


def storage_key(tensor: Tensor) -> int:
    """A key of the tensor's storage; valid while the storage lives."""
    key: int = tensor.untyped_storage()._cdata
    return key
