"""What goes between two processes as one message: tensors and other values, packed into bytes, and taken out again."""

import math
import pickle
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dni_fx.errors import DniFxError

__all__ = ["HEADER", "Capacity", "Message", "pack", "pack_last", "payload", "unpack"]

HEADER = 4096  # bytes at the beginning: the values that are no tensors, and for each tensor its shape and dtype

_ALIGNED = 64  # bytes: each tensor begins at a multiple


class Message(NamedTuple):
    """Tensors and other values on their way.

    Attributes:
        packed: uint8 [HEADER + payload]: the header, then the tensors in the memory of the host.
        tensors: The bytes of tensors on a device, which follow.
        event: When those are there.
        nbytes: Of all tensors.
        is_last: The sender has no more to send.
    """

    packed: Tensor
    tensors: tuple[Tensor, ...] = ()
    event: torch.cuda.Event | None = None
    nbytes: int = 0
    is_last: bool = False


class _Here(NamedTuple):
    """Stands for a tensor: in the payload from a byte on; on a device, None."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    begin: int | None


class _Header(NamedTuple):
    payload: int  # bytes
    items: list[Any] | None  # None: the last message


class Capacity:
    """The bytes of the first part of each message, for which the receiver makes room before the message comes.

    A part has room for the longest payload that the receiver knew then: it asks for a message when it has read all up
    to the one that came `ahead` messages before. Both ends compute it from what they have sent, or read.
    """

    def __init__(self, ahead: int) -> None:
        self._unread = deque([0] * ahead, maxlen=ahead)
        self._longest = 0

    def of_next(self, size: int) -> int:
        """The room in the next message, whose own payload is `size` bytes."""
        self._longest = max(self._longest, self._unread[0])
        self._unread.append(size)
        return HEADER + self._longest


def pack(values: Sequence[Any]) -> Message:
    """A message with copies of the tensors: one may be a view of a weight, or of a buffer that the loop fills again.

    Raises:
        DniFxError: If the other values take more than `HEADER` bytes.
    """
    items, end = list(values), 0
    here: list[tuple[int, Tensor]] = []
    for index, value in enumerate(items):
        if isinstance(value, Tensor):
            begin = None
            if value.device.type == "cpu":
                begin, end = end, end + math.ceil(value.nbytes / _ALIGNED) * _ALIGNED
                here.append((begin, value))
            items[index] = _Here(tuple(value.shape), value.dtype, begin)
    packed = _with_header(_Header(end, items))
    for begin, value in here:
        if value.numel():
            _part(packed, begin, value.shape, value.dtype).copy_(value.detach())
    tensors = [value for value in values if isinstance(value, Tensor)]
    away = tuple(_as_bytes(t) for t in tensors if t.device.type != "cpu" and t.numel())
    event = torch.cuda.current_stream(away[0].device).record_event() if away and away[0].is_cuda else None
    return Message(packed, away, event, sum(tensor.nbytes for tensor in tensors))


def pack_last() -> Message:
    """The message after which the sender has no more to send."""
    return Message(_with_header(_Header(0, None)), is_last=True)


def payload(first: Tensor) -> int:
    """The bytes after the header, from the first part of a message."""
    return _header(first).payload


def unpack(packed: Tensor, device: torch.device) -> tuple[list[Any] | None, list[Tensor]]:
    """The values of a message, None: it is the last one; and the memory of the tensors on the device, which follow."""
    items = _header(packed).items
    if items is None:
        return None, []
    away = []
    for index, item in enumerate(items):
        if isinstance(item, _Here) and item.begin is not None:
            items[index] = _part(packed, item.begin, item.shape, item.dtype).to(device)
        elif isinstance(item, _Here):
            items[index] = torch.empty(item.shape, dtype=item.dtype, device=device)
            if items[index].numel():
                away.append(items[index].reshape(-1).view(torch.uint8))
    return items, away


def _with_header(header: _Header) -> Tensor:
    """The memory of a message, with its header."""
    text = pickle.dumps(header)
    if len(text) > HEADER:
        raise DniFxError(f"the values beside tensors in a message take {len(text)} bytes, more than {HEADER}")
    packed = torch.empty(HEADER + header.payload, dtype=torch.uint8)
    packed[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return packed


def _header(packed: Tensor) -> _Header:
    header: _Header = pickle.loads(packed[:HEADER].numpy().tobytes())  # from a process of the same run
    return header


def _part(packed: Tensor, begin: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor in a message. Its memory is that of the message; its version is its own, for writes in place."""
    size = math.prod(shape) * dtype.itemsize
    return packed[HEADER + begin : HEADER + begin + size].view(dtype).view(torch.Size(shape)).data


def _as_bytes(tensor: Tensor) -> Tensor:
    """The memory of a contiguous copy: not all backends send bool, or bfloat16."""
    return tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)
