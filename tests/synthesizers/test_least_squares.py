"""Least squares: exact, forgetting, and fitted beside compiled code."""

from typing import Any

import pytest
import torch
from made import CPU, make
from nets import two_layers
from torch import Tensor

import dni_fx
from dni_fx.errors import DniFxError
from dni_fx.synthesizers.base import Activation
from dni_fx.synthesizers.registry import resolve

X = torch.randn(6, 8)


def fitted(shape: tuple[int, ...], unit: float, known: int | None = None, steps: int = 10) -> tuple[Any, Tensor]:
    """Least squares fitted to `unit` times a linear rule, with targets for the first `known` rows; and the rule."""
    synthesizer = make("least_squares(ridge=1e-6)", shape)
    rule = torch.randn(shape[-1], shape[-1])
    for _ in range(steps):
        h = torch.randn(shape)
        prediction = synthesizer(h)
        error = prediction.detach() - unit * (h @ rule + 1)
        if known is not None:
            error[known:] = 0
        prediction.backward(error / shape[0])  # as at a `Crossing`: the gradient of the mean
    return synthesizer, rule


@pytest.mark.parametrize("shape", [(32, 4), (8, 6, 4)])
@pytest.mark.parametrize("unit", [1.0, 1e-6])
def test_least_squares_are_exact_in_any_unit(shape: tuple[int, ...], unit: float) -> None:
    synthesizer, rule = fitted(shape, unit)
    h = torch.randn(shape)
    torch.testing.assert_close(synthesizer(h) / unit, h @ rule + 1, rtol=1e-3, atol=1e-3)


def test_least_squares_learn_nothing_of_rows_of_which_nothing_is_known() -> None:
    synthesizer, rule = fitted((32, 4), 1.0, known=16)
    assert synthesizer.squares[-1, -1] == pytest.approx(16 * sum(0.99**i for i in range(10)))
    h = torch.randn(5, 4)
    torch.testing.assert_close(synthesizer(h), h @ rule + 1, rtol=1e-3, atol=1e-3)


def test_least_squares_forget() -> None:
    synthesizer, _ = fitted((32, 4), 1.0)
    for _ in range(2000):
        h = torch.randn(32, 4)
        prediction = synthesizer(h)
        prediction.backward((prediction.detach() + h) / 32)
    h = torch.randn(5, 4)
    torch.testing.assert_close(synthesizer(h), -h, rtol=1e-3, atol=1e-3)


def test_least_squares_that_cannot_be() -> None:
    with pytest.raises(DniFxError, match="too coarse: use mlp"):
        resolve("least_squares", (5, 7), 1)[1](Activation((5, 7), torch.bfloat16, CPU, 1), 0)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo looks at tensors
def test_least_squares_are_fitted_beside_what_is_compiled() -> None:
    options: Any = {"cuts": ["1"], "synthesizer": "least_squares", "unlock": "none"}
    nets = [dni_fx.transform(two_layers(8), X, **options, compile=how) for how in (False, {"backend": "aot_eager"})]
    for net in nets:
        for _ in range(6):
            net(X).square().mean().backward()
    one, other = (next(iter(net.dni.synthesizers.values())) for net in nets)
    assert one.weight.any()
    torch.testing.assert_close(one.weight, other.weight)
