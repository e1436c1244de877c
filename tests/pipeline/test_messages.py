"""What is packed comes out again, in memory of its own; both ends compute the same room for it."""

import random
from collections import deque

import pytest
import torch
from torch import Tensor

from dni_fx import DniFxError
from dni_fx.pipeline.messages import HEADER, Capacity, pack, pack_last, payload, unpack

CPU = torch.device("cpu")
TENSORS = [
    torch.rand(3, 5),
    torch.rand(3, 5).T,
    torch.rand(4, 6)[:, ::2],
    torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
    torch.tensor(3.5),
    torch.empty(0, 4),
    torch.tensor([True, False, True]),
    torch.arange(5, dtype=torch.int16),
    torch.rand(3).bfloat16(),
    torch.rand(3, dtype=torch.complex64),
    torch.rand(2, requires_grad=True),
    torch.rand(2).expand(3, 2),
]


def test_what_is_packed_comes_out() -> None:
    values = [7, TENSORS[0], None, *TENSORS[1:], "text"]
    message = pack(values)
    found, away = unpack(message.packed, CPU)
    assert found is not None and away == [] and payload(message.packed) == len(message.packed) - HEADER
    assert message.nbytes == sum(tensor.nbytes for tensor in TENSORS)
    for value, one in zip(values, found, strict=True):
        if isinstance(value, Tensor):
            assert one.dtype == value.dtype and torch.equal(one, value)
            assert one.is_contiguous() and not one.requires_grad
        else:
            assert one == value


def test_a_message_is_a_copy() -> None:
    value = torch.zeros(3)
    message = pack([value])
    value += 1
    found, _ = unpack(message.packed, CPU)
    assert found is not None and found[0].tolist() == [0, 0, 0]


def test_a_write_in_place_does_not_concern_the_other_tensors() -> None:
    found, _ = unpack(pack([torch.ones(2), torch.ones(2)]).packed, CPU)
    assert found is not None
    weight = torch.ones(2, requires_grad=True)
    product = (found[0] * weight).sum()
    found[1].add_(1)
    product.backward()
    assert weight.grad is not None and weight.grad.tolist() == [1, 1]


def test_the_last_message() -> None:
    message = pack_last()
    assert message.is_last and len(message.packed) == HEADER and unpack(message.packed, CPU) == (None, [])


def test_too_many_other_values() -> None:
    with pytest.raises(DniFxError, match=r"take .* bytes, more than 4096"):
        pack(["x" * 5000])


@pytest.mark.parametrize("ahead", [1, 2, 6])
def test_both_ends_know_the_room(ahead: int) -> None:
    """The receiver asks for a message with the room for the longest that it has read."""
    rng = random.Random(0)
    sizes = [rng.choice([0, 10, 20, 30, 40]) for _ in range(60)]
    capacity, asked, longest = Capacity(ahead), deque[int](), 0
    for size in sizes:
        while len(asked) < ahead:
            asked.append(HEADER + longest)
        assert capacity.of_next(size) == asked.popleft()
        longest = max(longest, size)
