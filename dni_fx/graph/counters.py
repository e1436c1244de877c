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
    """Stands for the tracker of FlopCounterMode, whose hooks on every module cost time and break reversible layers."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def flop_counter() -> FlopCounterMode:
    """Counts FLOPs in total, by no module."""
    aten = torch.ops.aten
    counter = FlopCounterMode(
        display=False,
        custom_mapping={aten.mkldnn_rnn_layer: _layer_flops, aten._cudnn_rnn: _stack_flops, aten.lstm: _stack_flops},
    )
    counter.mod_tracker = _OneModule()  # type: ignore[assignment]
    return counter


def _layer_flops(sequence: Any, w_input: Any, w_hidden: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """A recurrent layer multiplies its weights with every step of every row; shapes (T, N, features)."""
    flops: int = 2 * math.prod(sequence[:2]) * (math.prod(w_input) + math.prod(w_hidden))
    return flops


def _stack_flops(sequence: Any, weights: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    flops: int = 2 * math.prod(sequence[:2]) * sum(math.prod(w) for w in weights if len(w) == 2)
    return flops


def sequence_number() -> int:
    """Autograd numbers its nodes as they are made: the next number."""
    marker: Any = torch.zeros((), requires_grad=True).clone().grad_fn
    return int(marker._sequence_nr())


class Saving(saved_tensors_hooks):
    """Counts, while it is entered, the memory that autograd keeps, each storage once.

    Storages that are freed meanwhile may be taken for others: hold what runs in it until it is left.

    Args:
        ignore: Tensors that are there anyway: parameters, buffers, inputs.
    """

    def __init__(self, ignore: Iterable[Tensor]) -> None:
        super().__init__(self._pack, lambda tensor: tensor)
        self._seen = {storage_key(t) for t in ignore}
        self._fresh: dict[int, int] = {}
        self._alias: dict[int, int] = {}
        self.unknown = False  # an operator has a workspace that its fake kernel knows no size of

    def _pack(self, tensor: Tensor) -> Tensor:
        key = self.key(tensor)
        size = tensor.untyped_storage().nbytes()
        self.unknown |= not size and tensor.dtype in (torch.uint8, torch.int8)
        if key not in self._seen:
            self._seen.add(key)
            self._fresh[key] = size
        return tensor

    def take_for_one(self, originals: Sequence[Tensor], copies: Sequence[Tensor]) -> None:
        """Count a copy that is only there to be looked at as the original. Hold both."""
        keys = [self.key(t) for t in originals]  # which may be copies themselves
        self._alias.update({storage_key(c): key for c, key in zip(copies, keys, strict=True)})

    def key(self, tensor: Tensor) -> int:
        """That of its memory; for a copy, of the original's."""
        key = storage_key(tensor)
        return self._alias.get(key, key)

    def take(self) -> dict[int, int]:
        """Bytes by storage of what has been kept since the last call, but what was kept before that."""
        fresh, self._fresh = self._fresh, {}
        self.unknown = False
        return fresh

    def is_on_top(self, hooks: Any) -> bool:
        """Whether `hooks`, the innermost ones that autograd has, are these."""
        return hooks is not None and hooks[0] == self.pack_hook


def storage_key(tensor: Tensor) -> int:
    """A key of the memory that a tensor lies in, for as long as it lives."""
    key: int = tensor.untyped_storage()._cdata
    return key
