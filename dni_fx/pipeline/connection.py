"""The links of a stage with its neighbours; before them, a check that all processes have stages of one pipeline."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from dni_fx.errors import DniFxError, PeerError, first_line
from dni_fx.pipeline import groups
from dni_fx.pipeline.link import Peer, Receiver, Sender
from dni_fx.pipeline.stage import Stage

__all__ = ["Connection", "Description", "check_descriptions", "connect"]

_SECONDS = 2.0  # for a neighbour to say why it stopped


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

    def __str__(self) -> str:
        return str(Peer(self.stage, self.rank))


@dataclass
class Connection:
    """The links of a stage with the stages below and above it; None: there is none.

    Attributes:
        below: From the stage below come activations; to it go gradients.
        learns_below: The synthesizers of the stage below learn from the gradients of this one.
        groups: The groups for activations, for gradients, and for shared weights.
        ranks: The rank of each stage in the default group.
        others: The links for shared weights.
    """

    own: Peer
    below: tuple[Receiver, Sender] | None
    above: tuple[Sender, Receiver] | None
    learns_below: bool
    groups: list[dist.ProcessGroup]
    ranks: list[int]
    others: list[Sender | Receiver] = field(default_factory=list)

    @property
    def activations(self) -> Receiver:
        assert self.below is not None
        return self.below[0]

    @property
    def to_below(self) -> Sender:
        assert self.below is not None
        return self.below[1]

    @property
    def to_above(self) -> Sender:
        assert self.above is not None
        return self.above[0]

    @property
    def targets(self) -> Receiver:
        assert self.above is not None
        return self.above[1]

    def check(self) -> None:
        """Raise a PeerError if the stage above is gone."""
        if self.above is not None:
            self.targets.check()

    def bytes(self) -> dict[str, int]:
        """The bytes that were sent: activations upwards, gradients downwards, and weights to those that have copies."""
        up = 0 if self.above is None else self.to_above.bytes
        down = 0 if self.below is None else self.to_below.bytes
        weights = sum(link.bytes for link in self.others if isinstance(link, Sender))
        return {"bytes_up": up, "bytes_down": down, "bytes_weights": weights}

    def failed(self, error: BaseException) -> BaseException:
        """Tell the neighbours that this process stops, and return the error to raise: one that names the cause."""
        if isinstance(error, PeerError):
            receivers = [*(self.below or ())[:1], *(self.above or ())[1:]]
            failures = [receiver.failure(_SECONDS) for receiver in receivers if isinstance(receiver, Receiver)]
            error = next((one for one in failures if one is not None and " is gone: " not in str(one)), error)
            said = str(error).split(": ")[0] if " is gone: " in str(error) else str(error)
        else:
            said = f"{self.own} stopped: {type(error).__name__}: {first_line(error)}"
        self.close(_SECONDS, said)
        return error

    def close(self, seconds: float, failure: str | None = None) -> None:
        """Send the last message on each link, and wait for those of the other processes.

        Raises:
            PeerError: If another process does not end its part within the seconds, but for a failure.
        """
        links = [*(self.below or ()), *(self.above or ()), *self.others]
        senders = [link for link in links if isinstance(link, Sender)]
        receivers = [link for link in links if isinstance(link, Receiver)]
        for sender in senders:
            threading.Thread(target=sender.end, args=(failure,), daemon=True).start()  # all at once
        end = time.monotonic() + seconds
        late: list[Sender | Receiver] = [link for link in receivers if not link.drain(end - time.monotonic())]
        late += [link for link in senders if not link.finish(max(0.0, end - time.monotonic()))]
        if failure is not None:
            return
        for link in late:
            raise PeerError(f"{link.peer} has not closed its schedule within {seconds:g} seconds")
        for group in self.groups:
            groups.give_back(self.ranks, group)


def connect(
    stage: Stage, microbatches: int, sync: bool, learns: bool, group: dist.ProcessGroup | None, timeout: float
) -> Connection:
    """Check that the processes have the stages of one net, and connect the neighbours.

    Raises:
        DniFxError: In all processes, if they do not fit; it names both ends.
    """
    if not dist.is_initialized():
        raise DniFxError("call torch.distributed.init_process_group(), and start the program by torchrun")
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    own = Description(
        stage.index, dist.get_rank(), stage.count, microbatches, sync, stage.net_name, stage.takes, stage.gives, learns
    )
    found: list[Any] = [None] * size
    dist.all_gather_object(found, own, group=group)
    check_descriptions(found)
    ranks = [dist.get_global_rank(group, k) if group is not None else k for k in range(size)]
    taken = [groups.take(ranks) for _ in range(3)]
    device = next((p.device for p in stage.parameters()), torch.device("cpu"))
    waiting = {"limit": microbatches} if sync else {}  # else each of two neighbours could wait for the other

    below = above = None
    if rank > 0:
        peer = Peer(rank - 1, ranks[rank - 1])
        below = Receiver(peer, taken[0], device, timeout), Sender(peer, taken[1], timeout, **waiting)
    if rank < size - 1:
        peer = Peer(rank + 1, ranks[rank + 1])
        above = Sender(peer, taken[0], timeout), Receiver(peer, taken[1], device, timeout, **waiting)
    return Connection(Peer(rank, ranks[rank]), below, above, rank > 0 and found[rank - 1].learns, taken, ranks)


def check_descriptions(found: Sequence[Description]) -> None:
    """Raise a DniFxError if the processes have not the stages of one net."""
    first = found[0]
    if len(found) != first.stages:
        raise DniFxError(f"the net has {first.stages} stages, but there are {len(found)} processes: a stage each")
    for number, one in enumerate(found):
        if one.stage != number:
            raise DniFxError(f"the process with rank {number} has {one}: it runs stages(net)[{number}]")
        for what in ("stages", "microbatches", "sync"):
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
