"""Which process of a pipeline has stopped, and why: each tells all others, apart from the data that they exchange."""

import itertools
import pickle
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from dni_fx.pipeline.link import LinkError, Peer, Reader, Sender, break_off

__all__ = ["Report", "Watch", "cause", "next_tag"]

# Of the messages of each watch of the same processes; a program seldom uses such tags.
_tags: defaultdict[tuple[int, ...], Iterator[int]] = defaultdict(lambda: itertools.count(2**20))
_SECONDS = 1.0  # for the other processes to say why they stop


def next_tag(ranks: Sequence[int]) -> int:
    """The tag of the next watch of these processes, which all of them make in the same order."""
    return next(_tags[tuple(ranks)])


class Report(NamedTuple):
    """Why a process stops.

    Attributes:
        suspect: The stage that it waited for, which may know the cause; None: the text names the cause.
    """

    text: str
    suspect: int | None = None


class Watch:
    """Links with all other processes of a pipeline. One whose link breaks before it says why it stops, is gone.

    Args:
        group: Of all processes. It is older than the pipeline: a process that dies while they connect is noticed.
        tag: Of the messages: pipelines of the same processes have different ones.
        on_failure: Called in another thread when a process has stopped.

    Attributes:
        reports: Why processes stopped, by stage; the first comes first.
    """

    def __init__(
        self,
        own: Peer,
        peers: Sequence[Peer],
        group: dist.ProcessGroup,
        tag: int,
        timeout: float,
        on_failure: Callable[[], None],
    ) -> None:
        self.own, self.peers, self.group, self.tag, self.timeout = own, peers, group, tag, timeout
        self.reports: dict[int, Report] = {}
        self._on_failure = on_failure
        self._descriptions: dict[int, Any] = {}
        self._listening = {peer.stage for peer in peers}
        self._changed = threading.Condition()
        # A description, a report, the last message.
        self._senders = [Sender(peer, group, timeout, limit=3, tag=tag) for peer in peers]
        for peer in peers:
            threading.Thread(target=self._listen, args=(peer,), name=f"watches {peer}", daemon=True).start()

    def exchange(self, description: Any) -> list[Any]:
        """Tell all others what this process is; return what each is.

        Raises:
            PeerError: If one is gone, or does not start within the timeout.
        """
        self._send(description)
        with self._changed:
            self._descriptions[self.own.stage] = description
            self._changed.wait_for(lambda: self.reports or not self._missing(), self.timeout)
            self.check()
            for peer in self._missing():
                raise LinkError(f"{peer} did not start within {self.timeout:g} seconds", peer.stage)
            return [self._descriptions[stage] for stage in sorted(self._descriptions)]

    def check(self) -> None:
        """Raise a LinkError if a process has stopped."""
        for stage, report in list(self.reports.items()):
            raise LinkError(report.text, stage)

    def reason(self) -> str | None:
        """Why another process has stopped, if one says so within a second."""
        with self._changed:
            self._changed.wait_for(lambda: self.reports, _SECONDS)
            return next((report.text for report in self.reports.values()), None)

    def stop(self, report: Report, *, needs_cause: bool) -> str:
        """Tell all others why this process stops, and return the cause, which another may know."""
        self._send(report)
        self.end()
        with self._changed:
            self.reports[self.own.stage] = report
            if needs_cause:
                self._changed.wait_for(self._is_clear, _SECONDS)
            text = cause(self.own, self.reports, [peer for peer in self.peers if peer.stage in self._listening])
        self._flush()
        return text

    def end(self) -> bool:
        """Send the last message to all others; return whether it is sent, but to those that are gone."""
        ended = [sender.end() for sender in self._senders]
        return all(ended)

    def wait(self, seconds: float) -> None:
        """Tell all others that this process ends, and wait until all have ended.

        Raises:
            LinkError: If one has stopped, or does not end within the seconds.
        """
        self.end()
        with self._changed:
            self._changed.wait_for(lambda: self.reports or not self._listening, seconds)
            self.check()
            for peer in self.peers:
                if peer.stage in self._listening:
                    raise LinkError(self.late(peer), peer.stage)
        self._flush()

    def late(self, peer: Peer) -> str:
        return f"{self.own} has closed its schedule, but {peer} has not within {self.timeout:g} seconds"

    def abandon(self) -> None:
        """Wait for no process any more; for the end of the program."""
        if self._listening:
            self._on_failure = lambda: None
            break_off(self.group)
            with self._changed:
                self._changed.wait_for(lambda: not self._listening, _SECONDS)

    def _flush(self) -> None:
        """Wait until the last messages are sent: after that the program may end."""
        end = time.monotonic() + _SECONDS
        while not self.end() and time.monotonic() < end:
            time.sleep(0.005)

    def _missing(self) -> list[Peer]:
        return [peer for peer in self.peers if peer.stage not in self._descriptions]

    def _is_clear(self) -> bool:
        return any(r.suspect is None for r in self.reports.values()) or not self._listening

    def _send(self, value: Any) -> None:
        packed = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        for sender in self._senders:
            sender.offer([packed])

    def _listen(self, peer: Peer) -> None:
        reader = Reader(peer, self.group, torch.device("cpu"), self.tag)
        try:
            while (found := reader.read()) is not None:
                value = pickle.loads(found[0].numpy().tobytes())  # from a process of the same run
                if isinstance(value, Report):
                    self._failed(peer, value)
                else:
                    with self._changed:
                        self._descriptions[peer.stage] = value
                        self._changed.notify_all()
        except Exception:  # any error of a backend
            self._failed(peer, Report(f"{peer} is gone: its process has ended"))
        with self._changed:
            self._listening.discard(peer.stage)
            self._changed.notify_all()

    def _failed(self, peer: Peer, report: Report) -> None:
        with self._changed:
            self.reports.setdefault(peer.stage, report)
            self._changed.notify_all()
        self._on_failure()


def cause(own: Peer, reports: Mapping[int, Report], silent: Sequence[Peer]) -> str:
    """The line that names the process that stopped first.

    Args:
        reports: Why processes stopped, with that of `own`.
        silent: Those that have not said anything.
    """
    for report in reports.values():
        if report.suspect is None:
            return report.text
    # Each waited for another: the last of this chain has not said for which, or they waited for each other.
    seen: list[int] = []
    stage = own.stage
    while stage in reports and stage not in seen:
        seen.append(stage)
        suspect = reports[stage].suspect
        assert suspect is not None
        stage = suspect
    if stage not in seen:
        return next(report.text for report in reports.values() if report.suspect == stage)
    if silent:  # for a sum of gradients, in which one is missing
        return f"{silent[0]} does not answer"
    return next(iter(reports.values())).text
