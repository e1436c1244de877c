"""Messages between two processes: lists of tensors and other values, in order, over torch.distributed."""

import contextlib
import pickle
import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from dni_fx.errors import DniFxError, PeerError, first_line

__all__ = ["EQUALLY_OFTEN", "LinkError", "Peer", "Receiver", "Sender", "break_off", "read"]

EQUALLY_OFTEN = "call step() equally often in all processes"

LIMIT = 2  # messages on each side of a link that wait for the other side

_FOREVER = timedelta(days=365)  # a thread waits for the next message; who asks for it has a timeout

_NEVER_SENT = 2**30  # the tag of no message

_HEADER = 4096  # bytes of the message before the tensors: shapes, dtypes, and the values that are no tensors


class Peer(NamedTuple):
    """The process at the other end.

    Attributes:
        stage: The index of its stage, and its rank in the group of the pipeline.
        rank: Its rank in the default group.
    """

    stage: int
    rank: int

    def __str__(self) -> str:
        return f"stage {self.stage} (rank {self.rank})"


class _TensorHere(NamedTuple):
    """Stands for a tensor, which follows."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class _Last(NamedTuple):
    """The last message of a link: the sender has no more to send."""


class LinkError(PeerError):
    """A wait for another process that came to no good end.

    Attributes:
        suspect: The stage that was waited for; None: the error is the cause, and no other process has a better reason.
    """

    def __init__(self, message: str, suspect: int | None) -> None:
        super().__init__(message)
        self.suspect = suspect


class _Message(NamedTuple):
    """What a thread sends.

    Attributes:
        items: The values, with `_TensorHere` for tensors; or `_Last`.
        event: When the tensors are there, on a device.
    """

    items: "list[Any] | _Last"
    tensors: tuple[Tensor, ...]
    event: torch.cuda.Event | None = None

    @classmethod
    def of(cls, values: Sequence[Any]) -> "_Message":
        # A copy: it may be a view of a weight that is updated, or of a batch in a buffer that the loop fills again.
        tensors = tuple(_copy(value) for value in values if isinstance(value, Tensor))
        items = [_TensorHere(tuple(v.shape), v.dtype) if isinstance(v, Tensor) else v for v in values]
        if (size := len(pickle.dumps(items))) > _HEADER:
            raise DniFxError(f"the values beside tensors in a message take {size} bytes, more than {_HEADER}")
        device = next((t.device for t in tensors if t.device.type == "cuda"), None)
        event = None if device is None else torch.cuda.current_stream(device).record_event()
        return cls(items, tuple(_as_bytes(t) for t in tensors if t.numel()), event)


class Sender:
    """Sends messages to a process in a thread of its own, and lets at most `limit` of them wait for it.

    Attributes:
        bytes: Sent so far, without headers.
        error: Why no more can be sent.
    """

    def __init__(self, peer: Peer, group: dist.ProcessGroup, timeout: float, limit: int = LIMIT, tag: int = 0) -> None:
        self.peer, self.group, self.timeout, self.tag = peer, group, timeout, tag
        self.bytes = 0
        self.error: LinkError | None = None
        self._waiting: queue.Queue[_Message] = queue.Queue(limit)
        self._ended = False
        self._thread = threading.Thread(target=self._send, name=f"to {peer}", daemon=True)
        self._thread.start()

    def send(self, values: Sequence[Any]) -> None:
        """Send values; wait while too many older messages wait.

        Raises:
            LinkError: If the process is gone, or takes no message within the timeout.
        """
        message = _Message.of(values)
        end = time.monotonic() + self.timeout
        while self.error is None:
            try:
                self._waiting.put(message, timeout=0.1)
            except queue.Full:
                if time.monotonic() >= end:
                    what = f"{self.peer} took no message for {self.timeout:g} seconds"
                    self.error = LinkError(what, self.peer.stage)
            else:
                self.bytes += sum(tensor.nbytes for tensor in message.tensors)
                return
        raise self.error

    def offer(self, values: Sequence[Any]) -> None:
        """Send values, unless too many older messages wait, or the process is gone."""
        if self.error is None and not self._waiting.full():
            self.send(values)

    def end(self) -> bool:
        """Send the last message, as soon as there is room for it; return whether all are sent, or cannot be."""
        if not self._ended:
            with contextlib.suppress(queue.Full):
                self._waiting.put_nowait(_Message(_Last(), ()))
                self._ended = True
        return self.error is not None or not self._thread.is_alive()

    def _send(self) -> None:
        posted: deque[list[dist.Work]] = deque()
        try:
            while True:
                message = self._waiting.get()
                if message.event is not None:
                    message.event.synchronize()
                header = torch.zeros(_HEADER, dtype=torch.uint8)
                packed = pickle.dumps(message.items)
                header[: len(packed)] = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
                posted.append([post(t, self.peer, self.group, self.tag) for t in (header, *message.tensors)])
                is_last = isinstance(message.items, _Last)
                while len(posted) > (0 if is_last else LIMIT):
                    for work in posted.popleft():
                        work.wait(_FOREVER)
                if is_last:
                    return
        except Exception as error:  # any error of a backend; the thread that sends messages raises it
            self.error = _gone(self.peer, error)


class Receiver:
    """Receives messages from a process in a thread of its own, before they are asked for.

    Attributes:
        limit: The most messages that wait here.
        dropped: The number of messages that came after `end`.
        error: Why no more messages come.
    """

    def __init__(
        self, peer: Peer, group: dist.ProcessGroup, device: torch.device, timeout: float, limit: int = LIMIT
    ) -> None:
        self.peer, self.group, self.device, self.timeout = peer, group, device, timeout
        self.dropped = 0
        self.error: LinkError | None = None
        self._found: queue.Queue[list[Any] | LinkError] = queue.Queue(limit)
        self._thread = threading.Thread(target=self._receive, name=f"from {peer}", daemon=True)
        self._thread.start()

    def take(self) -> list[Any]:
        """The next message.

        Raises:
            LinkError: If the process is gone, has no more to send, or sends nothing within the timeout.
        """
        try:
            found = self.error or self._found.get(timeout=self.timeout)
        except queue.Empty:
            found = LinkError(f"{self.peer} sent nothing for {self.timeout:g} seconds", self.peer.stage)
        if isinstance(found, LinkError):
            self.error = found
            raise found
        return found

    def poll(self) -> list[Any] | None:
        """The next message, if one is there."""
        try:
            found = self._found.get_nowait()
        except queue.Empty:
            return None
        if isinstance(found, LinkError):
            self.error = found
            return None
        return found

    def end(self) -> bool:
        """Drop the messages that have come; return whether no more can come."""
        while (found := self.poll()) is not None:
            self.dropped += isinstance(found, list)
        return self.error is not None

    def _receive(self) -> None:
        try:
            while (found := read(self.peer, self.group, self.device)) is not None:
                self._found.put(found)
            end = LinkError(f"{self.peer} has ended its training, and sends no more: {EQUALLY_OFTEN}", None)
        except Exception as error:  # any error of a backend; the thread that takes messages raises it
            end = _gone(self.peer, error)
        self._found.put(end)


def read(peer: Peer, group: dist.ProcessGroup, device: torch.device, tag: int = 0) -> list[Any] | None:
    """Wait for the next message of a process; None: the last one."""
    header = torch.empty(_HEADER, dtype=torch.uint8)
    _read_into(header, peer, group, tag)
    items = pickle.loads(header.numpy().tobytes())  # from a process of the same run
    if isinstance(items, _Last):
        return None
    for index, item in enumerate(items):
        if isinstance(item, _TensorHere):
            items[index] = tensor = torch.empty(item.shape, dtype=item.dtype, device=device)
            if tensor.numel():
                _read_into(_as_bytes(tensor), peer, group, tag)
            if tensor.device.type == "cuda":
                # Another thread uses it, on a stream of its own.
                torch.cuda.current_stream(tensor.device).synchronize()
    return list(items)


def break_off(group: dist.ProcessGroup) -> None:
    """End all waits of this process on a group, which then is of no use: gloo does so when one wait times out.

    A thread that waits inside of torch while the program ends would make it abort.
    """
    for rank in range(group.size()):
        if rank != group.rank():
            with contextlib.suppress(RuntimeError):
                group.recv([torch.empty(1)], rank, _NEVER_SENT).wait(timedelta(milliseconds=1))


def post(tensor: Tensor, peer: Peer, group: dist.ProcessGroup, tag: int) -> dist.Work:
    """Begin to send a tensor."""
    # A method of the group: a program may have called destroy_process_group() when the last message goes.
    return group.send([tensor], peer.stage, tag)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _as_bytes(tensor: Tensor) -> Tensor:
    """The memory of a contiguous tensor: gloo sends no bool, and no bfloat16."""
    return tensor.reshape(-1).view(torch.uint8)


def _read_into(tensor: Tensor, peer: Peer, group: dist.ProcessGroup, tag: int) -> None:
    group.recv([tensor], peer.stage, tag).wait(_FOREVER)


def _gone(peer: Peer, error: Exception) -> LinkError:
    return LinkError(f"{peer} is gone: {first_line(error)}", peer.stage)
