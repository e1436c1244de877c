"""Of what several processes say, the cause: not the process that only waited for another."""

import threading
import time
from typing import Any

import pytest
from in_threads import at_once, groups_of

from dni_fx.pipeline import link
from dni_fx.pipeline.link import Peer
from dni_fx.pipeline.watch import Report, Watch, cause

PEERS = [Peer(stage, 10 + stage) for stage in range(4)]


def silent(stage: int) -> Report:
    return Report(f"{PEERS[stage]} sent nothing for 3 seconds", stage)


@pytest.mark.parametrize(
    ("reports", "line"),
    [
        ({0: silent(1)}, "stage 1 (rank 11) sent nothing for 3 seconds"),
        ({0: silent(1), 1: silent(2)}, "stage 2 (rank 12) sent nothing for 3 seconds"),
        ({1: silent(2), 2: silent(3), 0: silent(1)}, "stage 3 (rank 13) sent nothing for 3 seconds"),
        ({0: silent(1), 2: Report("gone"), 1: silent(2)}, "gone"),
        ({2: Report("gone"), 3: Report("later"), 0: silent(1)}, "gone"),
        # The first says how long; the links of the others ended for that reason.
        ({1: silent(2), 0: Report("stage 2 is gone", 2)}, "stage 2 (rank 12) sent nothing for 3 seconds"),
        ({0: Report("no sum", 0), 1: Report("no sum", 1), 2: Report("no sum", 2)}, "stage 3 (rank 13) does not answer"),
        ({2: silent(0), 0: silent(1), 1: silent(0), 3: silent(2)}, "stage 0 (rank 10) sent nothing for 3 seconds"),
    ],
)
def test_cause(reports: dict[int, Report], line: str) -> None:
    assert cause(PEERS[0], reports, [peer for peer in PEERS[1:] if peer.stage not in reports]) == line


def test_a_process_that_says_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one that has said that it stops, and has no more to say, also where the next message takes a moment."""
    post = link.post

    def slow(*args: Any) -> Any:
        work = post(*args)
        time.sleep(0.1)
        return work

    monkeypatch.setattr(link, "post", slow)
    peers, lines = PEERS[:3], []
    with groups_of(3) as groups:
        watches = [
            Watch(own, [peer for peer in peers if peer != own], group, 1, 5.0, lambda: None)
            for own, group in zip(peers, groups, strict=True)
        ]
        at_once(*(threading.Thread(target=watch.exchange, args=("a description",)) for watch in watches))

        def stop(watch: Watch) -> None:
            lines.append(watch.stop(Report("another process is gone", watch.own.stage), needs_cause=True))

        at_once(*(threading.Thread(target=stop, args=(watch,)) for watch in watches[:2]))
    assert lines == 2 * ["stage 2 (rank 12) does not answer"]
