"""What is packed comes out again, in memory of its own; both ends compute the same room for it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dni_fx import DniFxError
from dni_fx.pipeline.messages import HEADER, Header, Message, pack, pack_last

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


def unpacked(message: Message) -> list[Any]:
    header = Header.of(message.packed)
    assert header.payload == len(message.packed) - HEADER
    found, missing = header.unpack(message.packed, CPU)
    assert missing == []
    return found


def test_what_is_packed_comes_out() -> None:
    values = [7, TENSORS[0], None, *TENSORS[1:], "text"]
    message = pack(values)
    found = unpacked(message)
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
    assert unpacked(message)[0].tolist() == [0, 0, 0]


def test_a_write_in_place_does_not_concern_the_other_tensors() -> None:
    found = unpacked(pack([torch.ones(2), torch.ones(2)]))
    weight = torch.ones(2, requires_grad=True)
    product = (found[0] * weight).sum()
    found[1].add_(1)
    product.backward()
    assert weight.grad is not None and weight.grad.tolist() == [1, 1]


def test_the_last_message() -> None:
    message = pack_last()
    assert message.is_last and len(message.packed) == HEADER and Header.of(message.packed) == (0, None)


def test_too_many_other_values() -> None:
    with pytest.raises(DniFxError, match=r"take .* bytes, more than 4096"):
        pack(["x" * 5000])


def test_tensors_on_a_device_follow() -> None:
    """Those on the host are in the message."""
    values = [torch.rand(3), torch.empty(2, 5, device="meta"), torch.empty(0, 2, device="meta"), torch.rand(4)]
    message = pack(values)
    assert [tensor.numel() for tensor in message.tensors] == [4 * 2 * 5]
    found, missing = Header.of(message.packed).unpack(message.packed, torch.device("meta"))
    assert [tensor.shape for tensor in found] == [tensor.shape for tensor in values]
    assert [tensor.numel() for tensor in missing] == [4 * 2 * 5]


def test_a_message_is_on_the_host_whatever_the_default_device_is() -> None:
    with torch.device("meta"):
        assert pack([]).packed.device == pack_last().packed.device == CPU


def test_many_tensors() -> None:
    values = [torch.full((1, k + 1), k) for k in range(200)]
    assert all(torch.equal(one, other) for one, other in zip(unpacked(pack(values)), values, strict=True))
