"""Where the samples are in a tensor: how many there are, and the batch as the first axis."""

import pytest
import torch

from dni_fx.ops import Layout, batch_size, clipped

CASES: list[tuple[Layout, tuple[int, ...], int, tuple[int, ...]]] = [
    (Layout(), (4, 3), 4, (4, 3)),
    (Layout(), (3,), 1, (3,)),
    (Layout(2), (4, 3), 4, (4, 3)),
    (Layout(2), (2, 4, 3), 2, (2, 4, 3)),  # more axes than in the example
    (Layout(2), (3,), 1, (1, 3)),  # no batch axis, unlike in the example
    (Layout(3), (5, 3), 1, (1, 5, 3)),
    (Layout(3, 1), (5, 4, 3), 4, (4, 5, 3)),
    (Layout(3, 1), (5, 3), 1, (1, 5, 3)),
    (Layout(3, 2), (5, 3, 4), 4, (4, 5, 3)),
    (Layout(2, 0, 5), (20, 3), 4, (20, 3)),
    (Layout(2, 0, 0), (20, 3), 20, (20, 3)),
    (Layout(2, None), (7, 3), 1, (1, 7, 3)),
]


@pytest.mark.parametrize(("layout", "shape", "samples", "batch_first"), CASES)
def test_samples_and_the_way_to_batch_first(
    layout: Layout, shape: tuple[int, ...], samples: int, batch_first: tuple[int, ...]
) -> None:
    tensor = torch.randn(shape)
    assert layout.samples(tensor) == samples
    moved = layout.batch_first(tensor)
    assert moved.shape == batch_first
    assert torch.equal(layout.restored(moved, tensor), tensor)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_clipping_is_by_sample_on_any_axis(axis: int) -> None:
    target = torch.randn(4, 5, 3)
    expected = clipped(target, 0.5, 4).movedim(0, axis)
    norms = torch.linalg.vector_norm(clipped(target, 0.5, 4).flatten(1), dim=1) * 4
    assert float(norms.max()) <= 0.5001
    assert torch.allclose(clipped(target.movedim(0, axis), 0.5, 4, axis), expected)


def test_clipping_of_one_sample_is_of_the_whole() -> None:
    target = torch.randn(4, 5)
    assert torch.allclose(torch.linalg.vector_norm(clipped(target, 0.5, 1, None)), torch.tensor(0.5))


def test_clipping_of_several_rows_a_sample_is_by_row() -> None:
    norms = torch.linalg.vector_norm(clipped(torch.randn(20, 3), 0.01, batch_size(torch.randn(20, 3), rows=5)), dim=1)
    assert torch.allclose(norms * 4, torch.tensor(0.01))


def test_the_library_op_takes_the_arguments_of_older_programs() -> None:
    h, prediction = torch.randn(4, 3, requires_grad=True), torch.zeros(4, 3, requires_grad=True)
    torch.ops.dni_fx.inject(h, prediction, 0.0, 0.0).sum().backward()
    assert prediction.grad is not None
    assert torch.equal(prediction.grad, torch.full((4, 3), -4.0))  # 4 samples, in the first axis


@pytest.mark.parametrize(("batch", "rows", "samples"), [(1, 1, 3), (-1, 1, 1), (0, 2, 2), (0, 0, 4)])
def test_the_library_op_counts_samples(batch: int, rows: int, samples: int) -> None:
    h, prediction = torch.randn(4, 3, requires_grad=True), torch.zeros(4, 3, requires_grad=True)
    torch.ops.dni_fx.inject(h, prediction, 0.0, 0.0, batch, rows).sum().backward()
    assert prediction.grad is not None
    assert torch.equal(prediction.grad, torch.full((4, 3), -float(samples)))
