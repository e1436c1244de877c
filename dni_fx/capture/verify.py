"""Never trust a capture: run it beside the eager model, and compare."""

import contextlib
import io
import random
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dni_fx.errors import CaptureError, DniFxError, first_line
from dni_fx.model import Inputs, describe, in_train_mode, preserved, seed, tensors_in
from dni_fx.ops import batch_size

__all__ = ["runs", "verify"]

Tensors = dict[str, Tensor]

T = TypeVar("T")

# Not one that people use: a random number fixed by a trace under the same seed would pass for a fresh one.
_SEED = 7_302_516_489


def runs(model: nn.Module, inputs: Inputs) -> str:
    """Run a few training steps of the model.

    Returns:
        Why no graph can be the same network, whatever it is: what forward does beside computing with tensors.

    Raises:
        DniFxError: If it does not run on the inputs, or gives no tensor that carries gradient.
    """
    try:
        _, gradients, _ = _train_step(model, model, inputs)
        with preserved(model), torch.no_grad():
            in_train_mode(model)
            _call(model, inputs)
            before, drawn = _attributes(model), _drawn()
            _call(model, inputs)
            draws = _drawn() != drawn
            changed = [name for name, one in _attributes(model).items() if before.get(name, one) is not one]
    except Exception as error:
        shapes = "; ".join(describe(inputs))
        raise DniFxError(f"the model does not run on the example inputs ({shapes}): {first_line(error)}") from None
    if not gradients and any(p.requires_grad for p in model.parameters()):
        raise DniFxError(f"forward of {type(model).__name__} gives no tensor that carries gradient to a parameter")
    if changed:
        return f"forward sets {changed[0]} anew at every call, which no graph does"
    if draws:
        return "forward draws random numbers of Python's or numpy's, which a graph would fix"
    return ""


def _drawn() -> tuple[Any, ...]:
    """How far Python's and numpy's generators of random numbers are."""
    numpy = sys.modules.get("numpy")
    _, keys, place, *_ = (None, b"", 0) if numpy is None else numpy.random.get_state()
    return random.getstate(), bytes(keys), place


def _attributes(model: nn.Module) -> dict[str, Any]:
    """What hangs at the modules, but for parameters, buffers and modules; numbers and texts by value."""
    return {
        f"{path}.{name}".lstrip("."): sys.intern(repr(value)) if isinstance(value, int | float | str) else value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if not name.startswith("_") or isinstance(value, Tensor)
    }


def verify(model: nn.Module, captured: nn.Module, inputs: Inputs) -> None:
    """Compare outputs, gradients of every parameter and buffers after a step, then eval mode and other batch sizes.

    Both modules share their parameters; the model, which must run on the inputs, is left as it was.

    Raises:
        CaptureError: Names the first check that failed.
    """
    expected = _train_step(model, model, inputs)
    got = _attempt("in train mode", lambda: _train_step(captured, model, inputs))
    for what, eager, traced in zip(("outputs", "gradients", "buffers"), expected, got, strict=True):
        _compare(f"{what} in train mode", eager, traced)
    _compare(
        "outputs in eval mode",
        _outputs(model, inputs, train=False),
        _attempt("in eval mode", lambda: _outputs(captured, inputs, train=False)),
    )
    for rows in _other_batch_sizes(inputs):
        other = inputs.with_rows(rows)
        try:
            eager = _outputs(model, other, train=True)
        except Exception:
            continue  # the model itself does not take this batch size
        what = f"for another batch size ({rows} rows)"
        _compare(f"outputs {what}", eager, _attempt(what, partial(_outputs, captured, other, train=True)))


def _other_batch_sizes(inputs: Inputs) -> list[int]:
    """One row more than the example, and, as the last batch of an epoch may have it, one row."""
    tensors = inputs.tensors()
    if not tensors or tensors[0].dim() < 2:
        return []
    rows = batch_size(tensors[0])
    return [rows + 1, 1] if rows > 1 else [rows + 1]


def _attempt(where: str, run: Callable[[], T]) -> T:
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # fx prints the line of generated code
            return run()
    except Exception as error:
        raise CaptureError(
            f"the graph fails {where}: {first_line(error)}. Write sizes in forward in terms of x.shape, or move that "
            "part into a submodule of its own, which is kept whole"
        ) from None


def _train_step(module: nn.Module, owner: nn.Module, inputs: Inputs) -> tuple[Tensors, Tensors, Tensors]:
    parameters = {name: p for name, p in owner.named_parameters() if p.requires_grad}
    with preserved(module), torch.enable_grad():
        _seed(module, train=True)
        outputs = _call(module, inputs)
        heads = [o for o in outputs.values() if o.requires_grad]
        gradients: Tensors = {}
        if heads and parameters:
            for parameter in parameters.values():
                parameter.grad = None
            torch.autograd.backward(heads, [torch.randn_like(h) for h in heads])
            gradients = {n: p.grad for n, p in parameters.items() if p.grad is not None}
        buffers = {name: b.detach().clone() for name, b in owner.named_buffers()}
        with torch.no_grad():  # what counts its calls gives something else the second time
            again = {f"{name}, second call": o for name, o in _call(module, inputs).items()}
        return outputs | again, gradients, buffers


def _outputs(module: nn.Module, inputs: Inputs, *, train: bool) -> Tensors:
    with preserved(module), torch.no_grad():
        _seed(module, train=train)
        return _call(module, inputs)


def _seed(module: nn.Module, *, train: bool) -> None:
    if train:
        in_train_mode(module)
    else:
        module.eval()
    seed(_SEED)


def _call(module: nn.Module, inputs: Inputs) -> Tensors:
    fresh = inputs.map(lambda t: t.detach().clone())  # a model may write to its input
    with warnings.catch_warnings():  # theirs are for their own training
        warnings.simplefilter("ignore")
        output: Any = module(*fresh.args, **fresh.kwargs)
    tensors = tensors_in(output)
    return {f"{i} of {len(tensors)}": tensor for i, tensor in enumerate(tensors)}


def _compare(what: str, eager: Tensors, traced: Tensors) -> None:
    advice = (
        "The trace is not the same network: no_grad and autocast blocks, custom autograd functions, hooks and buffers "
        "written in forward do not survive it. Move that part into a submodule of its own, which is kept whole"
    )
    if eager.keys() != traced.keys():
        names = ", ".join(sorted(eager.keys() ^ traced.keys())[:3])
        raise CaptureError(f"{what} differ from the eager model's: {names} only in one of them. {advice}")
    for name, expected in eager.items():
        got = traced[name]
        try:
            torch.testing.assert_close(got, expected, equal_nan=True)
        except AssertionError:
            largest = ""
            if got.shape == expected.shape and got.numel():
                difference = got.detach().to(torch.float64) - expected.detach().to(torch.float64)
                largest = f" by up to {float(difference.abs().max()):.2g}"
            raise CaptureError(f"{what} differ from the eager model's: {name}{largest}. {advice}") from None
