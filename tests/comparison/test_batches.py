"""Batches in the forms that people have."""

from typing import Any

import pytest
import torch

from dni_fx import DniFxError
from dni_fx.comparison.batches import Stream, made_up
from dni_fx.model import Inputs

X, Y = torch.zeros(4, 3), torch.zeros(4)


def test_forms() -> None:
    batches = [(X, Y), [(X, 2 * X), Y], ({"x": X}, Y), {"x": X, "labels": Y}]
    stream = Stream(batches)
    found = [stream.next() for _ in batches]
    assert [len(b.inputs.args) for b in found] == [1, 2, 0, 0]
    assert [list(b.inputs.kwargs) for b in found] == [[], [], ["x"], ["x", "labels"]]
    assert [b.target is None for b in found] == [False, False, False, True]


def test_the_data_begins_again() -> None:
    for data in ([(X, i) for i in range(3)], lambda: ((X, i) for i in range(3))):
        stream = Stream(data)
        assert [stream.next().target for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("data", [[], lambda: iter([]), iter([])])
def test_no_batch(data: Any) -> None:
    with pytest.raises(DniFxError, match="no batch"):
        Stream(data).next()


def test_an_iterator_that_ends() -> None:
    stream = Stream(iter([(X, Y)]))
    stream.next()
    with pytest.raises(DniFxError, match="give a function"):
        stream.next()


@pytest.mark.parametrize("data", [5, [X], [(X, Y, Y)], [(1, 2, 3)]])
def test_other_forms_are_refused(data: Any) -> None:
    with pytest.raises(DniFxError, match="data="):
        Stream(data).next()


def test_noise_has_the_shapes_of_the_example() -> None:
    ids = torch.arange(4)
    noise = made_up(Inputs((X, ids)))
    first, second = next(noise).inputs.args, next(noise).inputs.args
    assert first[0].shape == X.shape and not first[0].equal(second[0]) and first[1].equal(ids)
