"""Gradients that an exit has computed go to its parameters in the backward pass, scaled, and once."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dni_fx.errors import BackwardOrderError, DniFxError
from dni_fx.ops.exit import exit_gradients, gradients

GRADIENTS = [torch.rand(2, 3), torch.rand(4)]


def made(factor: Any = None, count: int = 2) -> tuple[tuple[Tensor, ...], list[nn.Parameter]]:
    parameters = [nn.Parameter(torch.zeros(3)) for _ in range(count)]
    found = [torch.arange(3.0), None][:count]
    return exit_gradients(GRADIENTS, parameters, found, lambda: factor), parameters


@pytest.mark.parametrize("factor", [None, 0.25, torch.tensor(8.0)])
def test_parameters_get_their_gradients_when_a_target_arrives(factor: Any) -> None:
    results, (trained, unused) = made(factor)
    assert all(torch.equal(result, gradient) for result, gradient in zip(results, GRADIENTS, strict=True))
    assert trained.grad is None
    results[1].backward(torch.rand(4))  # whatever the error is
    assert trained.grad is not None and torch.equal(trained.grad, torch.arange(3.0) * (1 if factor is None else factor))
    assert unused.grad is None


def test_the_factor_is_that_of_the_backward_pass() -> None:
    factors = [1.0]
    parameter = nn.Parameter(torch.zeros(3))
    results = exit_gradients(GRADIENTS, [parameter], [torch.ones(3)], lambda: factors[-1])
    factors.append(2.0)
    torch.autograd.backward(results, [torch.ones_like(result) for result in results])
    assert parameter.grad is not None and torch.equal(parameter.grad, torch.full((3,), 2.0))


def test_a_second_backward_pass_is_an_error() -> None:
    results, _ = made()
    results[0].sum().backward(retain_graph=True)
    with pytest.raises(BackwardOrderError):
        results[1].sum().backward()


def test_without_errors_parameters_get_nothing() -> None:
    """So it is where the true gradients were not finite."""

    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Tensor) -> Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: Any, *_: Tensor) -> Any:
            return None

    apply: Any = Nothing.apply
    results, (trained, _) = made()
    sum(apply(result).sum() for result in results).backward()
    assert trained.grad is None


def test_an_exit_without_parameters_gets_a_target_too() -> None:
    results, _ = made(count=0)
    assert all(result.requires_grad for result in results)
    results[0].sum().backward()


def test_a_reentrant_checkpoint_is_named() -> None:
    x = torch.ones(2, requires_grad=True)
    assert torch.equal(gradients(checkpoint(torch.sin, x, use_reentrant=False).sum(), [x])[0], torch.cos(x))
    with pytest.raises(DniFxError, match="use_reentrant=True, which has no gradients for some tensors alone"):
        gradients(checkpoint(torch.sin, x, use_reentrant=True).sum(), [x])
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradients(torch.ones(()), [x])
