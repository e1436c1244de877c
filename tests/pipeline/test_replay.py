"""Microbatches come again, each with its target, as they came; not if there are none, or after a regular end."""

from typing import Any

import pytest
import torch

from dni_fx.errors import PeerError
from dni_fx.pipeline.link import LinkError, Peer
from dni_fx.pipeline.replay import Replay


class Receiver:
    """Returns numbers, then fails."""

    peer = Peer(1, 5)

    def __init__(self, count: int, error: LinkError) -> None:
        self.left, self.error = [[torch.tensor([float(k)])] for k in range(count)], error

    def take(self) -> list[Any]:
        if not self.left:
            raise self.error
        return self.left.pop(0)


def taken(replay: Replay, receiver: Any, target: int) -> tuple[float, int]:
    (value,), target = replay.take(receiver, target)
    found = float(value)
    value.fill_(-1)  # as a stage may do
    return found, target


def test_the_last_microbatches_come_again() -> None:
    receiver, replay = Receiver(10, LinkError("gone", 1)), Replay()
    assert [taken(replay, receiver, k) for k in range(10)] == [(k, k) for k in range(10)]
    with pytest.warns(UserWarning, match=r"stage 1 \(rank 5\) is gone: this stage trains on its last 8 microbatches"):
        found = [taken(replay, receiver, 0)]
    found += [taken(replay, receiver, 0) for _ in range(15)]  # without another warning, which would be an error
    assert found == 2 * [(k, k) for k in range(2, 10)]


@pytest.mark.parametrize("receiver", [Receiver(0, LinkError("gone", 1)), Receiver(1, LinkError("ended", None))])
def test_nothing_to_replay(receiver: Receiver) -> None:
    replay = Replay()
    for _ in range(len(receiver.left)):
        taken(replay, receiver, 0)
    with pytest.raises(PeerError, match=str(receiver.error)):
        taken(replay, receiver, 0)
