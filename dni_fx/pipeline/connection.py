"""The links of a stage with its neighbours; before them, a check that all processes have stages of one pipeline."""

import atexit
import contextlib
import queue
import sys
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist

from dni_fx.errors import DniFxError, PeerError, first_line
from dni_fx.model import meshes_in
from dni_fx.pipeline import groups
from dni_fx.pipeline.link import AHEAD, EQUALLY_OFTEN, LinkError, Peer, Receiver, Sender, break_off
from dni_fx.pipeline.replicas import Replicas
from dni_fx.pipeline.stage import Stage
from dni_fx.pipeline.watch import Report, Watch, next_tag

__all__ = ["Connection", "Description", "check_descriptions"]

_SECONDS = 1.0  # for threads to return from torch, at the end of the program


class Description(NamedTuple):
    """What a process says of itself before the first step."""

    stage: int
    rank: int
    stages: int
    microbatches: int
    sync: bool
    net: str  # the fingerprint of the captured model, and the cuts
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    learns: bool
    groups: int = 0  # of torch, in the process
    split: tuple[int, ...] = ()  # the shape of the mesh over which `fully_shard` has split it
    replicas: tuple[int, ...] = ()  # the sizes of the groups of its replicas

    def __str__(self) -> str:
        return str(Peer(self.stage, self.rank))


class Connection:
    """The links of a stage with the stages below and above it, after a check that all have stages of one net.

    Args:
        group: The processes of the pipeline; None: all.
        replicas: The processes that have the same stage.
        timeout: Seconds for a wait.
        elastic: Train on when another process of the pipeline stops.

    Attributes:
        activations, to_below: The links with the stage below; the first stage has none.
        targets, to_above: The links with the stage above; the last stage has none.
        learns_below: The synthesizers of the stage below learn from the gradients of this one.
        shared: The group for weights that several stages have.
        others: The links for them.
        ranks: The rank of each stage in the default group.
        failure: Why this process has stopped.
    """

    activations: Receiver
    to_below: Sender
    targets: Receiver
    to_above: Sender
    shared: dist.ProcessGroup

    def __init__(
        self,
        group: dist.ProcessGroup | None,
        replicas: Sequence[dist.ProcessGroup],
        timeout: float,
        elastic: bool,
    ) -> None:
        everyone = group or dist.group.WORLD
        if not dist.is_initialized() or everyone is None:
            raise DniFxError("call torch.distributed.init_process_group(), and start the program by torchrun")
        for one in (everyone, *replicas):
            if "cpu:gloo" not in (backend := dist.get_backend_config(one)):
                raise DniFxError(
                    f"the process group has the backend {backend}; the messages of a pipeline need gloo, too:"
                    ' call init_process_group("cpu:gloo,cuda:nccl")'
                )
        self.timeout, self.elastic = timeout, elastic
        self.failure: BaseException | None = None
        self.learns_below = False
        self._links: list[Sender | Receiver] = []
        self.others: list[Sender | Receiver] = []
        self._groups: list[tuple[groups.Key, dist.ProcessGroup]] = []
        self.ranks = [dist.get_global_rank(everyone, k) for k in range(everyone.size())]
        peers = [Peer(k, rank) for k, rank in enumerate(self.ranks)]
        self.own = peers.pop(everyone.rank())
        on_failure = (lambda: None) if elastic else self._break_off
        self.watch = Watch(self.own, peers, everyone, next_tag(self.ranks), timeout, on_failure)
        self.replicas = Replicas(replicas, timeout)
        atexit.register(self._at_exit)

    def connect(self, stage: Stage, microbatches: int, sync: bool, learns: bool) -> None:
        """Check that the processes have the stages of one net, and connect the neighbours.

        Args:
            learns: The synthesizers of the stage learn from the gradients of the stage above.

        Raises:
            DniFxError: In all processes, if they do not fit; it names both ends.
            PeerError: If one is gone, or does not answer.
        """
        (index, rank), net = self.own, stage.net_name
        split = next((tuple(mesh.shape) for mesh in meshes_in(stage)), ())
        ends = stage.takes, stage.gives, learns
        counts = tuple(group.size() for group in self.replicas.groups)
        own = Description(stage.index, rank, stage.count, microbatches, sync, net, *ends, groups.count(), split, counts)
        found = self.watch.exchange(own)
        check_descriptions(found)
        groups.fill(max(one.groups for one in found))
        up, down, self.shared = (self._take_group() for _ in range(3))
        device = next((p.device for p in stage.parameters()), torch.device("cpu"))
        waiting = {"limit": microbatches} if sync else {}  # else each of two neighbours could wait for the other
        if index > 0:
            peer = Peer(index - 1, self.ranks[index - 1])
            self.activations = Receiver(peer, up, device, self.timeout, ahead=AHEAD)
            self.to_below = Sender(peer, down, self.timeout, **waiting, ahead=AHEAD)
            self.learns_below = found[index - 1].learns
            self._links += [self.activations, self.to_below]
        if index < stage.count - 1:
            peer = Peer(index + 1, self.ranks[index + 1])
            self.to_above = Sender(peer, up, self.timeout, ahead=AHEAD)
            self.targets = Receiver(peer, down, device, self.timeout, **waiting, ahead=AHEAD)
            self._links += [self.to_above, self.targets]
        alike = ("stage", "stages", "microbatches", "sync", "net")
        values = {name: getattr(own, name) for name in alike}
        self.replicas.begin(stage, values | {"parameters": sum(p.numel() for p in stage.parameters())})

    def _take_group(self) -> dist.ProcessGroup:
        """A group of all processes of the pipeline, until this connection ends.

        Raises:
            LinkError: If they do not connect.
        """
        key = groups.Key(tuple(self.ranks), self.timeout)
        found: queue.Queue[dist.ProcessGroup | Exception] = queue.Queue()
        # In a thread: torch waits for a process that is gone until the timeout.
        threading.Thread(target=_take, args=(key, found), name="connects", daemon=True).start()
        group = None
        while group is None:
            self.watch.check()
            with contextlib.suppress(queue.Empty):
                group = found.get(timeout=0.1)
        if isinstance(group, Exception):
            raise LinkError(f"the processes did not connect: {first_line(group)}", self.own.stage)
        self._groups.append((key, group))
        self.check()
        return group

    def check(self) -> None:
        """Raise a LinkError if another process has stopped, unless this one trains on."""
        self.replicas.check()
        if self.elastic:
            return
        self.watch.check()
        for link in [*self._links, *self.others]:
            if link.error is not None and link.error.suspect is not None:
                raise link.error

    def bytes(self) -> dict[str, int]:
        """The bytes that were sent: activations upwards, gradients downwards, and weights to those that have copies."""
        senders = [link for link in self._links if isinstance(link, Sender)]
        up = sum(sender.bytes for sender in senders if sender.peer.stage > self.own.stage)
        weights = sum(link.bytes for link in self.others if isinstance(link, Sender))
        return {"bytes_up": up, "bytes_down": sum(s.bytes for s in senders) - up, "bytes_weights": weights}

    def failed(self, error: BaseException) -> BaseException:
        """Tell the others that this process stops, and return the error to raise: one that names the cause."""
        of_peer = isinstance(error, LinkError)
        said = f"{type(error).__name__}: {first_line(error)}" if str(error) else type(error).__name__
        text = str(error) if of_peer else f"{self.own} stopped: {said}"
        report = Report(text, error.suspect if isinstance(error, LinkError) else None)
        text = self.watch.stop(report, needs_cause=of_peer)
        self.replicas.stop(text)
        self._break_off()
        self.failure = PeerError(text) if of_peer else error
        return self.failure

    def close(self) -> None:
        """Send the last message on each link, and wait for those of the other processes.

        Raises:
            PeerError: If another process does not end its part within the timeout.
        """
        try:
            self._end(time.monotonic() + self.timeout)
        except LinkError as error:
            failure = self.failed(error)
            if not self.elastic:
                raise failure from None
        else:
            atexit.unregister(self._at_exit)
            for key, group in self._groups:
                groups.give_back(key, group)

    def _end(self, end: float) -> None:
        waiting: list[Sender | Receiver] = [*self._links, *self.others]
        while waiting := [link for link in waiting if not link.end()]:
            self.check()
            if time.monotonic() > end:
                peer = waiting[0].peer
                raise LinkError(self.watch.late(peer), peer.stage)
            time.sleep(0.005)
        self.check()
        for link in self._links:
            if isinstance(link, Receiver) and link.peer.stage < self.own.stage and link.dropped:
                what = f"{link.peer} sent {link.dropped} microbatches more than {self.own} took"
                raise LinkError(f"{what}: {EQUALLY_OFTEN}", None)
        self.watch.wait(max(0.0, end - time.monotonic()))
        self.replicas.wait(max(0.0, end - time.monotonic()))

    def _break_off(self) -> None:
        for _, group in list(self._groups):
            break_off(group)

    def _at_exit(self) -> None:
        # A program that ends without close() must not end while threads wait inside of torch.
        raised = getattr(sys, "last_value", None)
        if self.failure is None and raised is not None:
            self.failed(raised)
        elif self.failure is None:
            try:
                self.close()
            except PeerError as error:
                sys.stderr.write(f"dni-fx: {error}\n")
        self.watch.abandon()
        self.replicas.abandon()
        # A thread that returns from torch while the program ends makes it abort.
        waiting, end = [*self._links, *self.others], time.monotonic() + _SECONDS
        while (waiting := [link for link in waiting if not link.end()]) and time.monotonic() < end:
            time.sleep(0.005)


def _take(key: groups.Key, found: "queue.Queue[dist.ProcessGroup | Exception]") -> None:
    try:
        found.put(groups.take(key))
    except RuntimeError as error:  # any error of a backend
        found.put(error)


def check_descriptions(found: Sequence[Description]) -> None:
    """Raise a DniFxError if the processes have not the stages of one net."""
    first = found[0]
    if len(found) != first.stages:
        raise DniFxError(f"the net has {first.stages} stages, but there are {len(found)} processes: a stage each")
    for number, one in enumerate(found):
        if one.stage != number:
            raise DniFxError(f"the process with rank {number} has {one}: it runs stages(net)[{number}]")
        for what in ("stages", "microbatches", "sync", "split", "replicas"):
            if getattr(one, what) != getattr(first, what):
                values = getattr(first, what), getattr(one, what)
                raise DniFxError(f"{first} has {what}={values[0]}, and {one} has {what}={values[1]}")
    for below, above in zip(found, found[1:], strict=False):
        if below.gives != above.takes:
            raise DniFxError(f"{below} sends {_words(below.gives)}, and {above} takes {_words(above.takes)}")
        if below.net != above.net:
            raise DniFxError(f"{below} and {above} have stages of different nets: make the same net in each process")


def _words(values: tuple[str, ...]) -> str:
    return ", ".join(values) or "nothing"
