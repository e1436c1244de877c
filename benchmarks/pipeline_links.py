"""A link with latency and bandwidth between processes of one machine, for every message of `torch.distributed`.

`Links.install()` puts its `isend` and `send` in the place of those of `torch.distributed`, where torch's schedules
(by `P2POp` and `batch_isend_irecv`) and all others look them up at each call. Receiving stays as it is.

A message to a rank leaves when the one before it to the same rank has left, and its bytes have passed at the link's
bandwidth; it arrives a latency later. `isend` copies the data, computes both times, and returns at once; a thread
sends the copy by gloo at the time of arrival. The request that `isend` returns is complete when the message has left,
as with a network card that has its own buffer: waiting for it costs the bandwidth, not the latency. Each group, rank
and tag has its own thread, which sends one message after another, so their order is kept. Both directions of a link
are independent. A link without latency and limit sends by gloo at once, without copy and thread.
"""

import queue
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from dni_fx.pipeline import link

_isend = dist.isend  # gloo's, which stays reachable when `install` replaces it


@dataclass(frozen=True)
class Link:
    """Latency in seconds, bandwidth in bytes a second."""

    latency: float = 0
    bandwidth: float = float("inf")


@dataclass(frozen=True)
class Request:
    """What a delayed `isend` returns: complete at a time of `time.monotonic`."""

    left: float

    def is_completed(self) -> bool:
        return time.monotonic() >= self.left

    def wait(self, timeout: Any = None) -> bool:
        time.sleep(max(0.0, self.left - time.monotonic()))
        return True


class Links:
    """The links from this rank to the others, all alike. `sent` counts bytes by rank."""

    def __init__(self) -> None:
        self.link = Link()
        self.sent: Counter[int] = Counter()
        self._free: defaultdict[int, float] = defaultdict(float)  # when the last message to a rank has left
        self._threads: dict[Any, tuple[queue.SimpleQueue[Any], threading.Thread]] = {}

    def install(self) -> None:
        isend = self.isend  # one object: torch compares operations by identity
        dist.isend = distributed_c10d.isend = isend
        dist.send = distributed_c10d.send = self.send
        link.post = self.post

    def isend(
        self, tensor: Tensor, dst: int | None = None, group: Any = None, tag: int = 0, group_dst: int | None = None
    ) -> Any:
        if dst is None:
            assert group_dst is not None
            dst = group_dst if group is None else dist.get_global_rank(group, group_dst)
        size = tensor.numel() * tensor.element_size()
        self.sent[dst] += size
        if self.link == Link():
            return _isend(tensor, dst, group, tag)
        left = max(time.monotonic(), self._free[dst]) + size / self.link.bandwidth
        self._free[dst] = left
        self._queue(group, dst, tag).put((left + self.link.latency, tensor.detach().clone()))
        return Request(left)

    def send(
        self, tensor: Tensor, dst: int | None = None, group: Any = None, tag: int = 0, group_dst: int | None = None
    ) -> None:
        self.isend(tensor, dst, group, tag, group_dst).wait()

    def post(self, tensor: Tensor, peer: link.Peer, group: Any, tag: int) -> Any:
        """In the place of `dni_fx.pipeline.link.post`."""
        return self.isend(tensor, group=group, tag=tag, group_dst=peer.stage)

    def stop(self) -> None:
        """Wait until the last message has arrived; end the threads."""
        for messages, thread in self._threads.values():
            messages.put(None)
            thread.join()
        self._threads.clear()

    def _queue(self, group: Any, dst: int, tag: int) -> queue.SimpleQueue[Any]:
        key = group, dst, tag
        if key not in self._threads:
            messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
            thread = threading.Thread(target=_deliver, args=(messages, *key), daemon=True)
            thread.start()
            self._threads[key] = messages, thread
        return self._threads[key][0]


def _deliver(messages: queue.SimpleQueue[Any], group: Any, dst: int, tag: int) -> None:
    while (message := messages.get()) is not None:
        arrival, tensor = message
        time.sleep(max(0.0, arrival - time.monotonic()))
        _isend(tensor, dst, group, tag).wait()
