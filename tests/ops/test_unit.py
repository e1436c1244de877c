"""Units that run once: the segment below gets the exit's gradient through them, and their parameters both gradients."""

import pytest
import torch
from torch import Tensor, nn

from dni_fx import ops
from dni_fx.errors import BackwardOrderError
from dni_fx.settings import Training


class Trains:
    """Stands for an exit."""

    trains_at_once = False

    def __init__(self, training: bool = True, frozen: bool = False) -> None:
        self.training, self.frozen = training, frozen

    def trained_in_units(self, borrowed: list[nn.Module]) -> list[nn.Parameter]:
        return [] if self.frozen else [p for module in borrowed for p in module.parameters()]


def run(frozen: bool = False) -> tuple[nn.Linear, nn.Linear, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    below, unit = nn.Linear(3, 4).double(), nn.Linear(4, 5).double()
    x, prediction, target = torch.randn(2, 3).double(), torch.randn(2, 5).double(), torch.randn(2, 5).double()
    segment, exit = ops.Segment(0.0, Training()), Trains(frozen=frozen)
    h = below(x)
    (leaf,) = ops.begin_unit((h,), exit)
    value = torch.tanh(unit(leaf))
    (following,) = ops.decouple_unit((h,), (leaf,), value, prediction.requires_grad_(), segment, exit, [unit])
    assert unit.weight.grad is None and leaf.requires_grad and not leaf.is_leaf
    torch.testing.assert_close(below.weight.grad, expected(below, unit, x, prediction)[0])
    following.backward(target)
    return below, unit, x, prediction, target


def expected(below: nn.Linear, unit: nn.Linear, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    found = torch.autograd.grad(torch.tanh(unit(below(x))), [below.weight, unit.weight], gradient.detach())
    return found[0], found[1]


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients(frozen: bool) -> None:
    below, unit, x, prediction, target = run(frozen)
    of_exit, of_segment = expected(below, unit, x, prediction), expected(below, unit, x, target)
    torch.testing.assert_close(below.weight.grad, of_exit[0])
    torch.testing.assert_close(unit.weight.grad, of_segment[1] if frozen else of_exit[1] + of_segment[1])
    torch.testing.assert_close(prediction.grad, 2 * (prediction - target).detach())


def test_nothing_happens_in_eval_mode() -> None:
    h, value = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3)
    assert ops.begin_unit((h,), Trains(training=False)) == (h,)
    with torch.no_grad():
        assert ops.begin_unit((h,), Trains()) == (h,)
    assert ops.decouple_unit((h,), (h,), value, None, ops.Segment(), Trains(), []) == (value,)


def test_a_prediction_that_is_not_finite_is_dropped() -> None:
    layer, segment = nn.Linear(3, 3), ops.Segment()
    h = layer(torch.randn(2, 3))
    (leaf,) = ops.begin_unit((h,), Trains())
    ops.decouple_unit((h,), (leaf,), 2 * leaf, torch.full((2, 3), torch.nan), segment, Trains(), [])
    assert int(segment.skipped) == 1 and not layer.weight.grad.any() and segment.diverged == 0


def test_a_second_backward_pass_is_refused() -> None:
    """Through the same forward pass, as at a cut without units."""
    layer, unit = nn.Linear(3, 3), nn.Linear(3, 3)
    h = layer(torch.randn(2, 3))
    (leaf,) = ops.begin_unit((h,), Trains())
    (following,) = ops.decouple_unit((h,), (leaf,), unit(leaf), torch.zeros(2, 3), ops.Segment(), Trains(), [unit])
    following.sum().backward(retain_graph=True)
    with pytest.raises(BackwardOrderError, match="two backward passes through one forward pass"):
        following.sum().backward()
