"""Counters of one run: FLOPs of recurrent layers, and the storages that autograd keeps."""

import gc
import weakref

import torch
from torch import nn

from dni_fx.graph.counters import Saving, flop_counter, sequence_number


def test_flops_of_a_recurrent_layer() -> None:
    lstm, x = nn.LSTM(3, 5), torch.rand(7, 2, 3)
    with flop_counter() as counter:
        lstm(x)
    assert counter.get_total_flops() == 2 * 7 * 2 * 4 * 5 * (3 + 5)


def test_each_saved_storage_is_counted_once() -> None:
    weight = torch.rand(4, 4, requires_grad=True)
    x = torch.rand(3, 4)
    saving = Saving([weight])
    with saving:
        h = x @ weight
        y = h.exp()
        z = y.view(-1) * y.view(-1)
        assert saving.take() == {saving.key(x): 3 * 4 * 4, saving.key(y): 3 * 4 * 4}
        assert saving.take() == saving.take_again() == {}
        w = z.tanh()
        v = y.view(-1) * w
        assert list(saving.take()) == [saving.key(w)]
        assert saving.take_again() == {saving.key(y): 3 * 4 * 4}
    del v


def test_what_was_saved_is_freed() -> None:
    """Also an output that its own node saves."""
    weight = nn.Parameter(torch.rand(4, 4))
    here = weakref.ref(weight)
    with Saving([]):
        y = (torch.rand(3, 4) @ weight).relu()
    del weight, y
    gc.collect()
    assert here() is None


def test_a_copy_counts_as_its_original() -> None:
    saving = Saving([])
    with saving:
        original = torch.rand(3, requires_grad=True)
        copied = original.clone()
        saving.alias([original], [copied])
        copied.square()
        assert list(saving.take()) == [saving.key(original)]


def test_numbers_of_autograd_grow() -> None:
    first = sequence_number()
    assert sequence_number() == first + 1
