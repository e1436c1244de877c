"""Messages between two processes: lists of tensors and other values, in order, over torch.distributed."""

import contextlib
import pickle
import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from dni_fx.errors import DniFxError, PeerError, first_line

__all__ = ["Peer", "Receiver", "Sender"]

LIMIT = 2  # messages on each side of a link that wait for the other side

_HEADER = 4096  # bytes of the message before the tensors: shapes, dtypes, and the values that are no tensors


class Peer(NamedTuple):
    """The process at the other end.

    Attributes:
        stage: The index of its stage.
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
    """The last message of a link.

    Attributes:
        failure: Why the sender stopped; None: it has no more to send.
    """

    failure: str | None


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
        tensors = tuple(value.detach().contiguous() for value in values if isinstance(value, Tensor))
        items = [_TensorHere(tuple(v.shape), v.dtype) if isinstance(v, Tensor) else v for v in values]
        if (size := len(pickle.dumps(items))) > _HEADER:
            raise DniFxError(f"the values beside tensors in a message take {size} bytes, more than {_HEADER}")
        device = next((t.device for t in tensors if t.device.type == "cuda"), None)
        event = None if device is None else torch.cuda.current_stream(device).record_event()
        return cls(items, tuple(t for t in tensors if t.numel()), event)


class Sender:
    """Sends messages to a process in a thread of its own, and lets at most `limit` of them wait for it.

    Attributes:
        bytes: Sent so far, without headers.
    """

    def __init__(self, peer: Peer, group: dist.ProcessGroup, timeout: float, limit: int = LIMIT) -> None:
        self.peer, self.group, self.timeout = peer, group, timeout
        self.bytes = 0
        self._waiting: queue.Queue[_Message] = queue.Queue(limit)
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._send, name=f"to {peer}", daemon=True)
        self._thread.start()

    def send(self, values: Sequence[Any]) -> None:
        """Send values; wait while too many older messages wait.

        Raises:
            PeerError: If the process is gone, or takes no message within the timeout.
        """
        self._put(_Message.of(values), self.timeout)

    def offer(self, values: Sequence[Any]) -> bool:
        """Send values, unless too many older messages wait; return whether they are sent.

        Raises:
            PeerError: If the process is gone.
        """
        if self._waiting.full() and self._error is None:
            return False
        self.send(values)
        return True

    def end(self, failure: str | None = None) -> None:
        """Send the last message; after a failure the process may be gone, too."""
        with contextlib.suppress(PeerError):
            self._put(_Message(_Last(failure), ()), 1.0 if failure else self.timeout)

    def finish(self, seconds: float) -> bool:
        """Wait until all messages are sent; return whether they are."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _put(self, message: "_Message", seconds: float) -> None:
        end = time.monotonic() + seconds
        while True:
            self._check()
            try:
                self._waiting.put(message, timeout=min(1.0, max(0.0, end - time.monotonic())))
            except queue.Full:
                if time.monotonic() >= end:
                    raise PeerError(f"{self.peer} took no message for {seconds:g} seconds") from None
            else:
                self.bytes += sum(tensor.nbytes for tensor in message.tensors)
                return

    def _check(self) -> None:
        if self._error is not None:
            raise _gone(self.peer, self._error)

    def _send(self) -> None:
        posted: deque[list[dist.Work | None]] = deque()
        try:
            while True:
                message = self._waiting.get()
                if message.event is not None:
                    message.event.synchronize()
                header = torch.zeros(_HEADER, dtype=torch.uint8)
                packed = pickle.dumps(message.items)
                header[: len(packed)] = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
                tensors = (header, *message.tensors)
                posted.append([dist.isend(tensor, self.peer.rank, group=self.group) for tensor in tensors])
                is_last = isinstance(message.items, _Last)
                while len(posted) > (0 if is_last else LIMIT):
                    for work in posted.popleft():
                        if work is not None:
                            work.wait()
                if is_last:
                    return
        except Exception as error:  # any error of a backend; the thread that sends messages raises it
            self._error = error


class Receiver:
    """Receives messages from a process in a thread of its own, before they are asked for.

    Attributes:
        limit: The most messages that wait here.
    """

    def __init__(
        self, peer: Peer, group: dist.ProcessGroup, device: torch.device, timeout: float, limit: int = LIMIT
    ) -> None:
        self.peer, self.group, self.device, self.timeout = peer, group, device, timeout
        self.ended = False
        self._error: _Last | Exception | None = None
        self._found: queue.Queue[list[Any] | _Last | Exception] = queue.Queue(limit)
        self._thread = threading.Thread(target=self._receive, name=f"from {peer}", daemon=True)
        self._thread.start()

    def take(self) -> list[Any]:
        """The next message.

        Raises:
            PeerError: If the process is gone, has no more to send, or sends nothing within the timeout.
        """
        try:
            found = self._opened(self._found.get(timeout=self.timeout))
        except queue.Empty:
            raise PeerError(f"{self.peer} sent nothing for {self.timeout:g} seconds") from None
        if found is None:
            raise PeerError(f"{self.peer} has ended its training, and sends no more")
        return found

    def poll(self) -> list[Any] | None:
        """The next message, if one is there.

        Raises:
            PeerError: If the process is gone.
        """
        try:
            return self._opened(self._found.get_nowait())
        except queue.Empty:
            return None

    def check(self) -> None:
        """Raise a PeerError if the process is gone."""
        if self._error is not None:
            self._opened(self._error)

    def drain(self, seconds: float) -> bool:
        """Drop messages, until the last one has come or the seconds are over; return whether it has come."""
        end = time.monotonic() + seconds
        while self._thread.is_alive() and time.monotonic() < end:
            with contextlib.suppress(queue.Empty):
                self._found.get(timeout=0.02)
        return not self._thread.is_alive()

    def failure(self, seconds: float) -> PeerError | None:
        """The failure that the process reports within some seconds, while its other messages are dropped."""
        end = time.monotonic() + seconds
        while not self.ended and (left := end - time.monotonic()) > 0:
            try:
                self._opened(self._found.get(timeout=left))
            except queue.Empty:
                return None
            except PeerError as error:
                return error
        return None

    def _opened(self, found: list[Any] | _Last | Exception) -> list[Any] | None:
        if isinstance(found, list):
            return found
        self.ended = True
        if isinstance(found, Exception):
            raise _gone(self.peer, found)
        if found.failure is not None:
            raise PeerError(found.failure)
        return None

    def _receive(self) -> None:
        try:
            while True:
                header = torch.empty(_HEADER, dtype=torch.uint8)
                dist.recv(header, self.peer.rank, group=self.group)
                items = pickle.loads(header.numpy().tobytes())  # from a process of the same run
                if isinstance(items, _Last):
                    self._error = items
                    self._found.put(items)
                    return
                self._found.put([self._tensor(i) if isinstance(i, _TensorHere) else i for i in items])
        except Exception as error:  # any error of a backend; the thread that takes messages raises it
            self._error = error
            self._found.put(error)

    def _tensor(self, item: _TensorHere) -> Tensor:
        tensor = torch.empty(item.shape, dtype=item.dtype, device=self.device)
        if tensor.numel():
            dist.recv(tensor, self.peer.rank, group=self.group)
        if tensor.device.type == "cuda":
            torch.cuda.current_stream(tensor.device).synchronize()  # another thread uses it, on a stream of its own
        return tensor


def _gone(peer: Peer, error: Exception) -> PeerError:
    if isinstance(error, PeerError):
        return error
    return PeerError(f"{peer} is gone: {first_line(error)}")
