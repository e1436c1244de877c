"""A number of steps in copies, state_dicts, and pickles of older versions."""

import copy
from typing import Any

import pytest
import torch

from dni_fx import Training
from dni_fx.ops import CountsSteps, Segment


class Counting(CountsSteps):
    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps


def test_a_state_dict_has_a_tensor() -> None:
    state, other = Counting(3).state_dict(), Counting(0)
    assert torch.equal(state["steps"], torch.tensor(3))
    other.load_state_dict(state)
    assert other.steps == copy.deepcopy(other).steps == 3
    other.load_state_dict({})
    assert other.steps == 3


@pytest.mark.parametrize("training", [Training(), Training(warmup=2)])
def test_a_segment_has_it_where_the_share_varies(training: Training) -> None:
    assert ("steps" in Segment(training=training).state_dict()) == (training.warmup > 0)


@pytest.mark.parametrize("kind", ["attribute", "buffer"])
def test_a_pickle_of_an_older_version(kind: str) -> None:
    older: Any = Counting(0)
    del older.steps
    if kind == "buffer":
        older.register_buffer("steps", torch.tensor(4))
    else:
        older.steps = torch.tensor(4)
    made = Counting.__new__(Counting)
    made.__setstate__(dict(older.__dict__))
    assert made.steps == 4 and type(made.steps) is int and not made._buffers
