"""Single steps in two processes: what is sent, which weights a microbatch sees, what stays as it was."""

from typing import Any

import pytest
import torch
from in_stages import X
from in_steps import process
from processes import in_processes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return in_processes(process, tmp_path_factory.mktemp("steps"))


def test_processes_with_other_numbers_of_groups_connect(found: list[dict[str, Any]]) -> None:
    assert [here["other groups"] for here in found] == [1, 1]


def test_a_loop_may_fill_the_buffer_of_a_batch_again(found: list[dict[str, Any]]) -> None:
    taken = found[1]["received"]
    assert len(taken) == 16
    for k, values in enumerate(taken):
        assert not values.isnan().any()
        wanted = (X + k // 4).chunk(4)[k % 4].flatten()
        assert any(torch.equal(values[i : i + len(wanted)], wanted) for i in range(len(values) - len(wanted) + 1))


def test_autocast_uses_the_weights_of_each_microbatch(found: list[dict[str, Any]]) -> None:
    for here in found:
        cached, uncached = here["autocast"]
        assert all(torch.equal(value, uncached[key]) for key, value in cached.items())


def test_a_frozen_weight_of_an_exit_does_not_move(found: list[dict[str, Any]]) -> None:
    assert [here["frozen"] for here in found] == [0, 0]


def test_a_tied_weight_begins_alike(found: list[dict[str, Any]]) -> None:
    assert torch.equal(found[0]["tied"], found[1]["tied"])


def test_modules_keep_their_modes(found: list[dict[str, Any]]) -> None:
    assert [here["modes"] for here in found] == 2 * [[False, True]]


def test_gradients_of_steps_add_up(found: list[dict[str, Any]]) -> None:
    for here in found:
        assert here["summed"]
        assert all(value.abs().max() < 1e-6 for value in here["summed"].values())


def test_a_wrong_batch_stops_both(found: list[dict[str, Any]]) -> None:
    text = "a batch of 3 samples does not split into 4 microbatches"
    assert found[0]["wrong batch"].startswith(f"DniFxError: {text}")
    assert found[1]["wrong batch"].startswith(f"PeerError: stage 0 (rank 0) stopped: DniFxError: {text}")
