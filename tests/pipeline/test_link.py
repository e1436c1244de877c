"""Two ends of a link, in one process."""

import threading
import time
from collections.abc import Iterator

import pytest
import torch
from in_threads import Groups, groups_of

from dni_fx.pipeline import link
from dni_fx.pipeline.link import AHEAD, LIMIT, LinkError, Peer, Receiver, Sender, break_off

SIZES = [1, 1, 3000, 2, 5000, 0, 7, 7, 100_000, 4, 4, 4, 4, 4, 4, 4, 200_000, 1]


@pytest.fixture
def groups() -> Iterator[Groups]:
    with groups_of(2) as made:
        yield made


def ends(groups: Groups, ahead: int) -> tuple[Sender, Receiver]:
    sender = Sender(Peer(1, 1), groups[0], timeout=5.0, ahead=ahead)
    return sender, Receiver(Peer(0, 0), groups[1], torch.device("cpu"), timeout=5.0, ahead=ahead)


def end(sender: Sender, receiver: Receiver) -> None:
    """Wait until both have ended: then the groups are free for others."""
    limit = time.monotonic() + 10
    while not all([sender.end(), receiver.end()]):
        assert time.monotonic() < limit
        time.sleep(0.001)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("ahead", [1, 2, AHEAD])
def test_messages_of_all_sizes_come_in_order(
    ahead: int, exact: bool, groups: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same groups again and again: no end asks for more than the other one sends."""
    monkeypatch.setattr(link, "_EXACT", exact)
    for repetition in range(3):
        sender, receiver = ends(groups, ahead)
        wanted = [[k, torch.arange(size) + repetition, torch.ones(k)] for k, size in enumerate(SIZES)]
        thread = threading.Thread(target=lambda sent, by: [by.send(one) for one in sent], args=(wanted, sender))
        thread.start()
        for number, *tensors in wanted:
            found = receiver.take()
            assert found[0] == number
            assert all(torch.equal(one, other) for one, other in zip(found[1:], tensors, strict=True))
        thread.join()
        assert sender.bytes == sum(8 * size + 4 * k for k, size in enumerate(SIZES))
        end(sender, receiver)
        assert receiver.dropped == 0
        with pytest.raises(LinkError, match=r"stage 0 \(rank 0\) has ended its training, and sends no more"):
            receiver.take()


def test_few_messages_wait(groups: Groups) -> None:
    """Those that are asked for come before they are needed; then the sender waits."""
    sender, receiver = ends(groups, AHEAD)
    for _ in range(2 * AHEAD):  # until there is room for them
        sender.send([torch.ones(10)])
        receiver.take()
    sender.timeout = 0.5
    passed = 0
    with pytest.raises(LinkError, match=r"stage 1 \(rank 1\) took no message for 0.5 seconds"):
        while True:
            sender.send([torch.ones(10)])
            passed += 1
    assert AHEAD < passed <= AHEAD + 4 * LIMIT


def test_what_has_come_from_a_process_that_is_gone(groups: Groups) -> None:
    sender, receiver = ends(groups, AHEAD)
    for k in range(2 * AHEAD):  # until there is room for them
        sender.send([k])
        receiver.take()
    for k in range(AHEAD):
        sender.send([k])
    time.sleep(0.5)
    break_off(groups[0])
    time.sleep(0.2)
    assert [receiver.take() for _ in range(AHEAD)] == [[k] for k in range(AHEAD)]
    with pytest.raises(LinkError, match=r"stage 0 \(rank 0\) is gone"):
        receiver.take()


@pytest.mark.parametrize("ahead", [1, 3])
def test_memory_is_that_of_the_last_messages(ahead: int, groups: Groups) -> None:
    """After one that is long."""
    sender, receiver = ends(groups, ahead)
    sizes = []
    for k in range(40):
        sender.send([torch.ones(10_000 if k == 0 else 1)])
        sizes.append(receiver.take()[0].untyped_storage().nbytes())
    assert sizes[0] > 40_000 and sizes[-1] < 5_000
