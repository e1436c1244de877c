"""Synthesizers without a memory: layers that options make."""

import pytest
import torch
from made import make, wake
from nets import two_layers
from torch import nn

import dni_fx

X = torch.randn(6, 8)


def test_zero_is_the_control() -> None:
    net = dni_fx.transform(two_layers(8), X, cuts=2, synthesizer="zero", verify=False).train()
    net(X).sum().backward()
    (below, *_), (*_, above) = ([p.grad for p in net.get_submodule(name).parameters()] for name in ("0", "2"))
    assert not below.any() and above.any()
    assert not [*net.dni.parameters()]


def test_options_are_what_they_say() -> None:
    paper = make("mlp(hidden_layers=2, hidden_size=1024, batch_norm=True)", (4, 256), 1)
    names = [type(layer).__name__ for layer in paper.net]
    assert names == ["Linear", "Norm", "ReLU", "Linear", "Norm", "ReLU", "Linear"]
    assert paper.net[0].out_features == paper.net[3].out_features == 1024
    conv = make("conv(hidden_layers=1, channels=16, kernel_size=5)", (2, 4, 9, 6), 1)
    assert (conv.net[0].out_channels, conv.net[0].kernel_size, len(conv.net)) == (16, (5, 5), 3)
    assert make("lstm(layers=3)", (5, 7)).net.num_layers == 3


def test_batch_norm_normalises_over_batch_and_positions() -> None:
    norm = make("mlp(batch_norm=True)", (5, 7, 3, 4), 1).net[1]
    reference = nn.BatchNorm1d(7)
    rows = torch.randn(60, 7)
    torch.testing.assert_close(norm(rows), reference(rows))
    torch.testing.assert_close(norm.running_var, reference.running_var)
    norm(rows[:1])  # a single row has no variance: the running statistics serve
    torch.testing.assert_close(norm.running_var, reference.running_var)


@pytest.mark.parametrize("size", [0, 3])
@pytest.mark.parametrize("shape", [(5, 7, 9), (5, 7, 6, 5), (5, 7, 1, 1), (5, 7, 8, 4), (5, 3, 4, 5, 3), (0, 7, 6, 5)])
def test_a_pool_predicts_alike_for_neighbours(shape: tuple[int, ...], size: int) -> None:
    conv = make("conv(kernel_size=1, pool=4)", shape, 1, size)
    wake(conv)
    context = torch.rand(shape[0], size, *shape[2:]) if size else None
    predicted = conv(torch.randn(shape), context)
    assert predicted.shape == shape
    corner = predicted[(slice(None), slice(None), *[slice(0, 4)] * (len(shape) - 2))]
    assert torch.equal(corner, corner[(..., *[slice(0, 1)] * (len(shape) - 2))].expand_as(corner))
    predicted.sum().backward()


def test_a_pool_averages() -> None:
    conv, h = make("conv(kernel_size=1, pool=2)", (5, 7, 6, 4), 1), torch.randn(5, 7, 6, 4)
    wake(conv)
    expected = nn.functional.interpolate(conv.net(nn.functional.avg_pool2d(h, 2)), (6, 4))
    torch.testing.assert_close(conv(h), expected)


def test_a_conv_that_an_older_version_pickled() -> None:
    conv, h = make("conv", (5, 7, 6, 4), 1), torch.randn(5, 7, 6, 4)
    del conv.pool
    assert conv(h).shape == h.shape
