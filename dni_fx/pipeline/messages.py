"""What goes between two processes as one message: tensors and other values, packed into bytes, and taken out again."""

import math
import pickle
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dni_fx.errors import DniFxError

__all__ = ["HEADER", "Header", "Message", "Room", "pack", "pack_last"]

HEADER = 4096  # bytes at the beginning: the values that are no tensors, and for each tensor its shape and dtype

_ALIGNMENT = 64  # bytes
_LAST = 16  # messages, of which the longest counts


class Message(NamedTuple):
    """Tensors and other values on their way.

    Attributes:
        packed: uint8 [HEADER + payload]: the header, then the tensors in the memory of the host.
        tensors: The bytes of tensors on a device. They follow, each by itself.
        event: Recorded after the copies on the device.
        nbytes: Of all tensors.
        is_last: The sender has no more to send.
    """

    packed: Tensor
    tensors: tuple[Tensor, ...] = ()
    event: torch.cuda.Event | None = None
    nbytes: int = 0
    is_last: bool = False


class _Tensor(NamedTuple):
    """A tensor among the values of a header."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    on_device: bool

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Header(NamedTuple):
    """What the first bytes of a message say.

    Attributes:
        payload: Bytes of the tensors in the memory of the host, which come after the header.
        values: With a `_Tensor` for each tensor; None: it is the last message.
    """

    payload: int
    values: list[Any] | None

    @classmethod
    def of(cls, packed: Tensor) -> "Header":
        """The header of a message, from its first part."""
        header: Header = pickle.loads(packed[:HEADER].numpy().tobytes())  # from a process of the same run
        return header

    def unpack(self, packed: Tensor, device: torch.device) -> tuple[list[Any], list[Tensor]]:
        """The values of a message.

        Returns:
            The values, with all tensors on `device`; and the bytes of those of them that are still to be received.
        """
        values, missing, begin = list(self.values or ()), [], HEADER
        for index, value in enumerate(values):
            if isinstance(value, _Tensor) and value.on_device:
                values[index] = torch.empty(value.shape, dtype=value.dtype, device=device)
                if value.nbytes:
                    missing.append(values[index].reshape(-1).view(torch.uint8))
            elif isinstance(value, _Tensor):
                values[index] = _part(packed, begin, value).to(device)
                begin += _aligned(value.nbytes)
        return values, missing


class Room:
    """The bytes for which the receiver makes room before the first part of a message comes.

    There is room for the longest of the last messages that it has read. The sender computes the same.
    """

    def __init__(self) -> None:
        self._payloads = deque([0], maxlen=_LAST)

    @property
    def bytes(self) -> int:
        return HEADER + max(self._payloads)

    def has_read(self, payload: int) -> None:
        self._payloads.append(payload)


def pack(values: Sequence[Any]) -> Message:
    """A message with copies of the tensors: one may be a view of a weight, or of a buffer that the loop fills again.

    Raises:
        DniFxError: If the other values, and the shapes of the tensors, take more than `HEADER` bytes.
    """
    tensors = [value for value in values if isinstance(value, Tensor)]
    host = [tensor for tensor in tensors if tensor.device.type == "cpu"]
    away = tuple(_as_bytes(t) for t in tensors if t.device.type != "cpu" and t.numel())
    event = torch.cuda.current_stream(away[0].device).record_event() if away and away[0].is_cuda else None
    items = [_Tensor(tuple(v.shape), v.dtype, v.device.type != "cpu") if isinstance(v, Tensor) else v for v in values]
    packed = _with_header(Header(sum(_aligned(tensor.nbytes) for tensor in host), items))
    begin = HEADER
    for tensor in host:
        if tensor.numel():
            _part(packed, begin, _Tensor(tuple(tensor.shape), tensor.dtype, False)).copy_(tensor.detach())
        begin += _aligned(tensor.nbytes)
    return Message(packed, away, event, sum(tensor.nbytes for tensor in tensors))


def pack_last() -> Message:
    """The message after which the sender has no more to send."""
    return Message(_with_header(Header(0, None)), is_last=True)


def _with_header(header: Header) -> Tensor:
    """The memory of a message, with its header."""
    text = pickle.dumps(header)
    if len(text) > HEADER:
        what = f"the shapes of the tensors, and the other values, in a message take {len(text)} bytes"
        raise DniFxError(f"{what}, more than {HEADER}")
    packed = torch.empty(HEADER + header.payload, dtype=torch.uint8, device="cpu")
    packed[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return packed


def _part(packed: Tensor, begin: int, tensor: _Tensor) -> Tensor:
    """A tensor in a message. Its memory is that of the message; its version is its own, for writes in place."""
    return packed[begin : begin + tensor.nbytes].view(tensor.dtype).view(torch.Size(tensor.shape)).data


def _aligned(nbytes: int) -> int:
    """The bytes from the begin of a tensor to that of the next."""
    return math.ceil(nbytes / _ALIGNMENT) * _ALIGNMENT


def _as_bytes(tensor: Tensor) -> Tensor:
    """The memory of a contiguous copy: not all backends send bool, or bfloat16."""
    return tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)
