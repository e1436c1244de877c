"""Messages between two processes: lists of tensors and other values, in order, over torch.distributed."""

import contextlib
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dni_fx.errors import PeerError, first_line
from dni_fx.pipeline.messages import HEADER, Header, Message, Room, pack, pack_last

__all__ = ["AHEAD", "EQUALLY_OFTEN", "LinkError", "Peer", "Reader", "Receiver", "Sender", "break_off"]

EQUALLY_OFTEN = "call step() equally often in all processes"

LIMIT = 1  # messages that wait on each side of a link, beside those that the receiver asks for
AHEAD = 6  # messages that a stage asks for before it needs them: in two latencies so many come

_FOREVER = timedelta(days=365)  # a thread waits for the next message; who asks for it has a timeout

_NEVER_SENT = 2**30  # the tag of no message

_FOLLOWING = 2**28  # added to the tag of a message, for what there was no room for

_EXACT = sys.platform != "linux"  # elsewhere gloo needs as many bytes as the receiver has room for


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


class LinkError(PeerError):
    """A wait for another process that came to no good end.

    Attributes:
        suspect: The stage that was waited for; None: the error is the cause, and no other process has a better reason.
    """

    def __init__(self, message: str, suspect: int | None) -> None:
        super().__init__(message)
        self.suspect = suspect


class Sender:
    """Sends messages to a process in a thread of its own, and lets at most `limit` of them wait for it.

    Args:
        ahead: That of the `Reader` at the other end.

    Attributes:
        bytes: Sent so far, without headers.
        error: Why no more can be sent.
    """

    def __init__(
        self, peer: Peer, group: dist.ProcessGroup, timeout: float, limit: int = LIMIT, tag: int = 0, ahead: int = 1
    ) -> None:
        self.peer, self.group, self.timeout, self.tag, self.ahead = peer, group, timeout, tag, ahead
        self.bytes = 0
        self.error: LinkError | None = None
        self._room, self._unread = Room(), deque[int]()
        self._waiting: queue.Queue[Message] = queue.Queue(limit)
        self._ended = False
        self._thread = threading.Thread(target=self._send, name=f"to {peer}", daemon=True)
        self._thread.start()

    def send(self, values: Sequence[Any]) -> None:
        """Send values; wait while too many older messages wait.

        Raises:
            LinkError: If the process is gone, or takes no message within the timeout.
        """
        message = pack(values)
        end = time.monotonic() + self.timeout
        while self.error is None:
            try:
                self._waiting.put(message, timeout=0.1)
            except queue.Full:
                if time.monotonic() >= end:
                    what = f"{self.peer} took no message for {self.timeout:g} seconds"
                    self.error = LinkError(what, self.peer.stage)
            else:
                self.bytes += message.nbytes
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
                self._waiting.put_nowait(pack_last())
                self._ended = True
        return self.error is not None or not self._thread.is_alive()

    def _send(self) -> None:
        posted: deque[list[dist.Work]] = deque()
        try:
            while True:
                message = self._waiting.get()
                if message.event is not None:
                    message.event.synchronize()
                # The last one answers all that the reader has asked for.
                posted += [self._post(message) for _ in range(self.ahead if message.is_last else 1)]
                while len(posted) > (0 if message.is_last else LIMIT):
                    for work in posted.popleft():
                        work.wait(_FOREVER)
                if message.is_last:
                    return
        except Exception as error:  # any error of a backend; the thread that sends messages raises it
            self.error = _gone(self.peer, error)

    def _post(self, message: Message) -> list[dist.Work]:
        """Begin to send the first part of a message, and what there is no room for."""
        if len(self._unread) == self.ahead:  # the reader has read the first of them before it asked for this one
            self._room.has_read(self._unread.popleft())
        self._unread.append(len(message.packed) - HEADER)
        room = self._room.bytes
        first, rest = message.packed[:room], message.packed[room:]
        if _EXACT:
            first = nn.functional.pad(first, (0, room - len(first)))
        works = [post(first, self.peer, self.group, self.tag)]
        following = [tensor for tensor in (rest, *message.tensors) if tensor.numel()]
        return works + [post(tensor, self.peer, self.group, self.tag + _FOLLOWING) for tensor in following]


class Receiver:
    """Receives messages from a process in a thread of its own, before they are asked for.

    Args:
        limit: The most messages that wait here, beside those that it asks for.

    Attributes:
        dropped: The number of messages that came after `end`.
        error: Why no more messages come.
    """

    def __init__(
        self,
        peer: Peer,
        group: dist.ProcessGroup,
        device: torch.device,
        timeout: float,
        limit: int = LIMIT,
        ahead: int = 1,
    ) -> None:
        self.peer, self.timeout = peer, timeout
        self._reader = Reader(peer, group, device, ahead=ahead)
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
            while (found := self._reader.read()) is not None:
                self._found.put(found)
            end = LinkError(f"{self.peer} has ended its training, and sends no more: {EQUALLY_OFTEN}", None)
        except Exception as error:  # any error of a backend; the thread that takes messages raises it
            end = _gone(self.peer, error)
        self._found.put(end)


class Reader:
    """Reads the messages of a process.

    It asks for the first parts of the next `ahead` messages at once. gloo sends none before it is asked for: if it
    asked for one at a time, each would take two latencies of the link. Tensors on a device are asked for one by one.
    """

    def __init__(
        self, peer: Peer, group: dist.ProcessGroup, device: torch.device, tag: int = 0, ahead: int = 1
    ) -> None:
        self.peer, self.group, self.device, self.tag, self.ahead = peer, group, device, tag, ahead
        self._asked: deque[tuple[Tensor, dist.Work]] = deque()
        self._room = Room()

    def read(self) -> list[Any] | None:
        """Wait for the next message; None: the last one."""
        try:
            while len(self._asked) < self.ahead:
                packed = torch.empty(self._room.bytes, dtype=torch.uint8, device="cpu")
                self._asked.append((packed, self.group.recv([packed], self.peer.stage, self.tag)))
        except RuntimeError:  # the process is gone; messages of it may have come before
            if not self._asked:
                raise
        packed, work = self._asked.popleft()
        work.wait(_FOREVER)
        header = Header.of(packed)
        if header.values is None:
            for _, work in self._asked:  # all bring the last message
                work.wait(_FOREVER)
            return None
        self._room.has_read(header.payload)
        missing = HEADER + header.payload - len(packed)
        if missing > 0:
            packed = torch.cat([packed, torch.empty(missing, dtype=torch.uint8, device="cpu")])
            self._read_following(packed[-missing:])
        values, tensors = header.unpack(packed, self.device)
        for tensor in tensors:
            self._read_following(tensor)
        if tensors and self.device.type == "cuda":
            # Another thread uses them, on a stream of its own.
            torch.cuda.current_stream(self.device).synchronize()
        return values

    def _read_following(self, tensor: Tensor) -> None:
        self.group.recv([tensor], self.peer.stage, self.tag + _FOLLOWING).wait(_FOREVER)


def break_off(group: dist.ProcessGroup) -> None:
    """End all waits of this process on a group, which then is of no use: gloo does so when one wait times out.

    A thread that waits inside of torch while the program ends would make it abort.
    """
    for rank in range(group.size()):
        if rank != group.rank():
            with contextlib.suppress(RuntimeError):
                group.recv([torch.empty(1, device="cpu")], rank, _NEVER_SENT).wait(timedelta(milliseconds=1))


def post(tensor: Tensor, peer: Peer, group: dist.ProcessGroup, tag: int) -> dist.Work:
    """Begin to send a tensor."""
    # A method of the group: a program may have called destroy_process_group() when the last message goes.
    return group.send([tensor], peer.stage, tag)


def _gone(peer: Peer, error: Exception) -> LinkError:
    return LinkError(f"{peer} is gone: {first_line(error)}", peer.stage)
