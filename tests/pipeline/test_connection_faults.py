"""When a process of a pipeline stops, all others end soon, each with one line that names it, and without an abort."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

SCRIPT = Path(__file__).parents[1] / "faults.py"


class Ended(NamedTuple):
    """How a process ended, and the lines that it printed."""

    status: int
    lines: list[str]


Found = dict[str, list[Ended]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("faults")
    # Without threads of OpenMP, which a fork loses.
    process = subprocess.Popen([sys.executable, str(SCRIPT), str(folder)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert process.wait(180) == 0
    ended = json.loads((folder / "ended.json").read_text())
    return {
        name: [
            Ended(status, (folder / f"{name}.{rank}").read_text().splitlines()[1:])
            for rank, status in enumerate(statuses)
        ]
        for name, statuses in ended.items()
    }


def others_say(processes: list[Ended], stopped: int, line: str) -> None:
    """The other processes end well, with this line, and again in a later step."""
    for rank, (status, lines) in enumerate(processes):
        if rank != stopped:
            assert status == 0 and lines == [f"PeerError: {line}", f"the schedule has stopped before: {line}"]


@pytest.mark.slow
@pytest.mark.parametrize("rank", range(3))
def test_a_killed_process_is_named(rank: int, found: Found) -> None:
    """At a random moment: while the processes connect, or while they train."""
    assert found[f"killed {rank}"][rank].status == -9
    others_say(found[f"killed {rank}"], rank, f"stage {rank} (rank {rank}) is gone: its process has ended")


@pytest.mark.slow
def test_a_process_that_is_killed_while_all_connect_is_named_at_once(found: Found) -> None:
    """The others do not wait for it until the timeout, which is longer than the case may take."""
    others_say(found["killed connecting"], 1, "stage 1 (rank 1) is gone: its process has ended")


@pytest.mark.slow
def test_a_process_that_is_killed_in_a_checkpoint_is_named(found: Found) -> None:
    first, *others = found["killed in checkpoint"]
    assert first == Ended(-9, [])
    assert others == 2 * [Ended(0, ["PeerError: stage 0 (rank 0) is gone: its process has ended"])]


@pytest.mark.slow
def test_a_stopped_process_is_named(found: Found) -> None:
    for name, rank in (("stopped", 1), ("stopped sync", 2)):
        for status, lines in found[name][:rank] + found[name][rank + 1 :]:
            assert status == 0 and len(lines) == 2 and lines[0].startswith(f"PeerError: stage {rank} (rank {rank}) ")
            assert lines[0].endswith((" for 3 seconds", " does not answer"))


@pytest.mark.slow
def test_an_error_of_one_process_is_named_in_the_others(found: Found) -> None:
    others_say(found["loss"], 2, "stage 2 (rank 2) stopped: ValueError: no such class")
    assert found["loss"][2].status == 1 and found["loss"][2].lines[-1].endswith("ValueError: no such class")
    others_say(found["interrupt"], 1, "stage 1 (rank 1) stopped: KeyboardInterrupt")
    assert found["interrupt"][1].status in (1, -2) and found["interrupt"][1].lines[-1].endswith("KeyboardInterrupt")


@pytest.mark.slow
def test_a_program_without_close(found: Found) -> None:
    assert found["forgets"] == 3 * [Ended(0, [])]


@pytest.mark.slow
def test_one_process_closes(found: Found) -> None:
    line = "stage 0 (rank 0) has ended its training, and sends no more: call step() equally often in all processes"
    others_say(found["closes"], 0, line)
    assert found["closes"][0] == Ended(0, [line, "the schedule is closed: make a new one"])


@pytest.mark.slow
def test_one_process_takes_fewer_steps(found: Found) -> None:
    line = "stage 1 (rank 1) sent 2 microbatches more than stage 2 (rank 2) took: call step() equally often in all"
    for status, lines in found["closes early"]:
        assert status == 0 and lines == [f"{line} processes", "the schedule is closed: make a new one"]


@pytest.mark.slow
def test_elastic(found: Found) -> None:
    """The stage below drops what it cannot send, and the one above trains on what it has."""
    below, _, above = found["elastic"]
    assert below.status == above.status == 0
    assert "'updates': 40" in below.lines[0] and int(below.lines[0].split()[-1].rstrip("}")) > 10
    assert above.lines[0].endswith("stage 1 (rank 1) is gone: this stage trains on its last 8 microbatches again")
    assert above.lines[-1] == "{'updates': 40, 'dropped': 0}" and len(above.lines) == 3
