"""Small heads from a crossing tensor to an output: shapes, other batch sizes, costs, and where none fits."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dni_fx.plans import CrossingTensor
from dni_fx.synthesizers.exit_heads import head_flops, make_head, of_target_size


def tensor(*shape: int, axis: int = -1, batch: int | None = 0, rows: int = 1) -> CrossingTensor:
    return CrossingTensor("h", shape, "float32", 4 * math.prod(shape), axis, batch, rows)


FITS = [
    ("vector to vector", tensor(4, 6), tensor(4, 3)),
    ("vector to map", tensor(4, 6), tensor(4, 3, 2, 2, axis=1)),
    ("map to vector", tensor(4, 6, 8, 8, axis=1), tensor(4, 3)),
    ("map to map", tensor(4, 6, 8, 8, axis=1), tensor(4, 3, 8, 8, axis=1)),
    ("map to larger map", tensor(4, 6, 4, 6, axis=1), tensor(4, 3, 8, 12, axis=1)),
    ("map to smaller map", tensor(4, 6, 8, axis=1), tensor(4, 3, 4, axis=1)),
    ("volume to volume", tensor(2, 3, 4, 4, 4, axis=1), tensor(2, 2, 4, 4, 4, axis=1)),
    ("sequence to vector", tensor(4, 5, 6), tensor(4, 3)),
    ("sequence to sequence", tensor(4, 5, 6), tensor(4, 5, 3)),
    ("sequence to rows", tensor(4, 5, 6), tensor(20, 3, rows=5)),
]


@pytest.mark.parametrize(("name", "below", "above"), FITS, ids=[name for name, _, _ in FITS])
def test_heads_give_the_shape_of_the_output(name: str, below: CrossingTensor, above: CrossingTensor) -> None:
    head = make_head([below], above)
    assert head is not None
    for batch in (1, below.shape[0], 7):
        shape = (batch, *below.shape[1:])
        expected = (above.shape[0] // below.shape[0] * batch, *above.shape[1:])
        assert head.eval()(torch.rand(shape)).shape == expected
    h = torch.rand(below.shape, requires_grad=True)
    head.train()(h).square().sum().backward()
    assert h.grad is not None
    positions = (h.grad != 0).any(-1) if below.axis == -1 else h.grad != 0
    assert positions.all() if below.axis == -1 else positions.any()
    assert all(p.grad is not None for p in head.parameters())


@pytest.mark.parametrize(("name", "below", "above"), FITS, ids=[name for name, _, _ in FITS])
def test_costs_are_those_of_the_layers(name: str, below: CrossingTensor, above: CrossingTensor) -> None:
    head = make_head([below], above)
    assert head is not None
    with FlopCounterMode(display=False) as counter:
        head(torch.rand(below.shape))
    assert head_flops([below], [above]) == counter.get_total_flops()
    assert head_flops([below], [above, above]) == 2 * counter.get_total_flops()


@pytest.mark.parametrize(
    ("below", "above"),
    [
        (tensor(4, 6, 8, 8, axis=1), tensor(4, 3, 8, axis=1)),
        (tensor(5, 4, 6, batch=1), tensor(4, 3)),
        (tensor(4, 6), tensor(3, 4, batch=1)),
        (tensor(4, 6), tensor(4)),
        (tensor(20, 6, rows=5), tensor(4, 3)),
        (tensor(4, 5, 6), tensor(4, 7, 3)),
    ],
)
def test_no_head_fits(below: CrossingTensor, above: CrossingTensor) -> None:
    assert make_head([below], above) is None
    assert head_flops([below], [tensor(4, 3), above]) == math.inf


def test_a_head_from_maps_takes_all_maps() -> None:
    """Skips of a U-Net would get no gradient else."""
    skip, row, last = tensor(4, 3, 8, 8, axis=1), tensor(4, 5), tensor(4, 6, 4, 4, axis=1)
    head = make_head([skip, row, last], tensor(4, 2, 16, 16, axis=1))
    assert head is not None
    values = [torch.rand(one.shape, requires_grad=True) for one in (skip, row, last)]
    out = head(*values)
    assert out.shape == (4, 2, 16, 16)
    out.square().sum().backward()
    assert [value.grad is not None for value in values] == [True, False, True]
    with FlopCounterMode(display=False) as counter:
        head(*values)
    assert head_flops([skip, row, last], [tensor(4, 2, 16, 16, axis=1)]) == counter.get_total_flops()


def test_a_map_of_one_position_and_one_sample() -> None:
    head = make_head([tensor(4, 6, 1, 1, axis=1)], tensor(4, 3))
    assert head is not None and head.train()(torch.rand(1, 6, 1, 1)).shape == (1, 3)


@pytest.mark.parametrize(
    ("target", "size"),
    [
        (torch.zeros(2, 9, 11, dtype=torch.long), (9, 11)),
        (torch.zeros(2, 3, 5, 4), (5, 4)),
        (torch.zeros(2, 8, 8, dtype=torch.long), (8, 8)),
        (torch.zeros(2, dtype=torch.long), (8, 8)),
        ({"labels": torch.zeros(2, 9, 9)}, (8, 8)),
    ],
)
def test_the_output_has_the_size_of_the_target(target: object, size: tuple[int, int]) -> None:
    assert of_target_size(torch.rand(2, 3, 8, 8), target).shape == (2, 3, *size)


def test_other_map_sizes() -> None:
    head = make_head([tensor(4, 6, 4, 4, axis=1)], tensor(4, 3, 8, 8, axis=1))
    assert head is not None and head(torch.rand(2, 6, 5, 6)).shape == (2, 3, 10, 12)
