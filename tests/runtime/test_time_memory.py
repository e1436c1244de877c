"""The memory of a cut in time: origins of rows, ended sequences, copies and checkpoints."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dni_fx
from dni_fx import DniFxError, Training
from dni_fx.model import preserved
from dni_fx.runtime.time_horizon import Start
from dni_fx.runtime.time_memory import Memory, Origin, Target

ROWS = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
X = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))  # time, rows, features


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.head = nn.Linear(2 + 4, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = torch.tanh(self.inner(torch.cat([x, state], 1)))
        return self.head(state), state


def trained(windows: int = 3, **options: Any) -> tuple[Any, Tensor]:
    """A net after a few windows, and its state."""
    net, state = dni_fx.transform(Cell(), (X[0], torch.zeros(3, 4)), state=True, **options).train(), torch.zeros(3, 4)
    for k in range(windows):
        y, state = net(X[k], state)
        y.square().mean().backward()
    return net, state


def remembering() -> Memory:
    memory = Memory()
    memory.remember(ROWS)
    return memory


def test_a_row_goes_on_or_begins_anew_or_has_an_unknown_origin() -> None:
    origin = remembering().origin_of(torch.stack([ROWS[0], torch.zeros(2), ROWS[0]]))
    assert origin.goes_on.tolist() == [[True], [False], [False]]
    assert origin.known.tolist() == [[True], [True], [False]]


def test_a_row_that_has_ended_does_not_go_on() -> None:
    memory = remembering()
    memory.end(torch.tensor([True, False, False]))
    memory.end(torch.tensor([False, False, True]))
    origin = memory.origin_of(ROWS)
    assert origin.goes_on.flatten().tolist() == [False, True, False]
    assert origin.known.all()
    memory.remember(ROWS)
    assert memory.origin_of(ROWS).goes_on.all()
    memory.end(None)
    assert not memory.origin_of(ROWS).goes_on.any()


def test_another_batch_size_has_an_unknown_origin() -> None:
    for memory in (Memory(), remembering()):
        assert not memory.origin_of(ROWS[:2]).known.any()


def test_before_the_first_window_no_sequence_can_end() -> None:
    memory = Memory()
    memory.end(torch.ones(7, dtype=torch.bool))
    assert memory == Memory()


@pytest.mark.parametrize("rows", [[True] * 3, torch.ones(2, dtype=torch.bool), torch.ones(3)])
def test_the_rows_that_end_are_a_mask(rows: Any) -> None:
    with pytest.raises(DniFxError, match="reset takes a bool tensor"):
        remembering().end(rows)


def test_remembered_rows_are_detached() -> None:
    memory = Memory()
    memory.remember(ROWS.clone().requires_grad_())
    assert memory.handed_on is not None and not memory.handed_on.requires_grad


def test_it_forgets_everything() -> None:
    memory = remembering()
    memory.end(None)
    memory.auxiliary, memory.unknown_calls = ROWS, 3
    memory.due.append(Target(ROWS, ROWS, torch.ones(3, 1, dtype=torch.bool)))
    memory.forget()
    assert memory == Memory()


def test_what_is_taken_is_not_kept() -> None:
    memory = Memory(auxiliary=ROWS, due=[Target(ROWS, ROWS, torch.ones(3, 1, dtype=torch.bool))])
    assert memory.take_auxiliary() is ROWS and len(memory.take_due()) == 1
    assert memory == Memory()


def test_calls_of_unknown_origin_are_counted_until_one_is_known() -> None:
    unknown, known = (Origin(mask, mask) for mask in (torch.zeros(3, 1), torch.ones(3, 1)))
    assert not Memory().are_unknown(unknown, 1)  # the first window has no origin
    memory = remembering()
    calls = (unknown, known, unknown, unknown, unknown)
    assert [memory.are_unknown(origin, 2) for origin in calls] == [False, False, False, True, False]


def test_progress_is_as_files_have_it() -> None:
    """Files of `save_checkpoint` hold these keys."""
    memory, again = remembering(), Memory()
    memory.end(torch.tensor([True, False, False]))
    progress = memory.progress()
    assert progress.keys() == {"rows", "ended"}
    again.resume(progress, torch.device("cpu"))
    assert torch.equal(again.origin_of(ROWS).goes_on, memory.origin_of(ROWS).goes_on)
    again.resume(Memory().progress(), torch.device("cpu"))
    assert again == Memory()


# ------------------------------------------------------------------------------------------------ in a net
@pytest.mark.parametrize("horizon", [1, 2])
def test_copies_and_pickles_remember_by_themselves(horizon: int) -> None:
    net, state = trained(training=Training(horizon=horizon))
    memory = net.dni.time0.memory
    for copied in (copy.deepcopy(net).dni.time0.memory, pickle.loads(pickle.dumps(memory))):
        assert copied is not memory and torch.equal(copied.handed_on, memory.handed_on)
        copied.forget()
    assert memory.origin_of(net.dni.time0.rows_of([state])).goes_on.all()


def test_a_state_dict_does_not_hold_it() -> None:
    net, _ = trained()
    untrained, _ = trained(windows=0)
    assert net.state_dict().keys() == untrained.state_dict().keys()
    assert not [name for name in net.state_dict() if "memory" in name]


def test_what_preserves_attributes_leaves_it() -> None:
    """A proof runs several windows, each of which leaves the attributes of modules as they were."""
    net, _ = trained(windows=0)
    with preserved(net):
        net(X[0], torch.zeros(3, 4))
    assert net.dni.time0.memory.handed_on is not None


def test_a_horizon_saves_plain_values() -> None:
    net, _ = trained(4, training=Training(horizon=3))
    kept = net.dni.replay.windows
    file = io.BytesIO()
    torch.save(net.dni.progress(), file)
    file.seek(0)
    again, _ = trained(windows=0, training=Training(horizon=3))
    again.dni.resume(torch.load(file, weights_only=True))
    assert kept and len(again.dni.replay.windows) == len(kept)
    for window, expected in zip(again.dni.replay.windows, kept, strict=True):
        (start,), (other,) = window.starts, expected.starts
        assert isinstance(start, Start) and isinstance(start.origin, Origin)
        assert torch.equal(start.handed_on, other.handed_on)
        assert torch.equal(start.origin.known, other.origin.known)
        assert window.gradients.keys() == expected.gradients.keys()


def test_targets_of_a_horizon_are_due_once() -> None:
    net, state = trained(3, training=Training(horizon=2))
    net(X[3], state)
    assert net.dni.time0.memory.due == []
    assert net.dni.metrics()["time0"]["steps"] > 0
