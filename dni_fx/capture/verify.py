"""Compare a capture with the eager model: outputs, gradients, buffers and parameters."""

import contextlib
import io
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from dni_fx.capture.eager import Eager
from dni_fx.capture.runs import Outcome, Tensors, call, train_step
from dni_fx.errors import CaptureError, first_line
from dni_fx.model import any_fake

__all__ = ["verify"]


def verify(eager: Eager, captured: nn.Module) -> None:
    """Compare the outcomes of a training step, then of eval mode and of other batch sizes.

    Both modules share their parameters. Their state is restored. Of fake tensors, shapes and dtypes are compared.

    Raises:
        CaptureError: If a check fails; the message names the first that did.
    """
    model, inputs = eager.model, eager.inputs
    got = _attempt("in train mode", lambda: train_step(captured, model, inputs))
    _compare("in train mode", eager.step, got)
    if eager.in_eval_mode is not None:
        expected, with_grad = eager.in_eval_mode
        run = partial(call, captured, model, inputs, train=False, with_grad=with_grad)
        _compare("in eval mode", expected, _attempt("in eval mode", run))
    for other in eager.other_batches:
        where = f"for another batch size ({other.sizes[1]} rows)"
        run = partial(call, captured, model, other.inputs, train=True, with_grad=True)
        _compare(where, other.result, _attempt(where, run))


def _attempt(where: str, run: Callable[[], Outcome]) -> Outcome:
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # fx prints the line of generated code
            return run()
    except Exception as error:  # a wrong graph may raise any error
        raise CaptureError(
            f"the graph fails {where}: {first_line(error)}. Write sizes in forward in terms of x.shape, or move that "
            "part into a submodule of its own, which is kept whole"
        ) from None


def _compare(where: str, eager: Outcome, traced: Outcome) -> None:
    for name in Outcome._fields:
        _compare_tensors(f"{name} {where}", getattr(eager, name), getattr(traced, name))


def _compare_tensors(compared: str, eager: Tensors, traced: Tensors) -> None:
    advice = (
        "The trace is not the same network: no_grad and autocast blocks, custom autograd functions, hooks, and buffers "
        "and parameters written in forward do not survive it. Move that part into a submodule of its own, which is "
        "kept whole"
    )
    if eager.keys() != traced.keys():
        names = ", ".join(sorted(eager.keys() ^ traced.keys())[:3])
        raise CaptureError(f"{compared} differ from the eager model's: {names} only in one of them. {advice}")
    for name, expected in eager.items():
        got = traced[name]
        if any_fake([got]):
            got, expected = got.to("meta"), expected.to("meta")
        if _are_identical(got, expected):
            continue
        try:
            torch.testing.assert_close(got, expected, equal_nan=True)
        except AssertionError:
            largest = ""
            if got.shape == expected.shape and got.numel():
                difference = got.detach().to(torch.float64) - expected.detach().to(torch.float64)
                largest = f" by up to {float(difference.abs().max()):.2g}"
            raise CaptureError(f"{compared} differ from the eager model's: {name}{largest}. {advice}") from None


def _are_identical(got: Tensor, expected: Tensor) -> bool:
    """Whether two tensors hold the same numbers, which takes a small part of the time of `assert_close`."""
    alike = (got.dtype, got.device, got.layout) == (expected.dtype, expected.device, expected.layout)
    return alike and got.layout is torch.strided and not (got.is_meta or got.is_nested) and torch.equal(got, expected)
