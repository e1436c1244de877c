"""Compare a capture with the eager model: outputs, gradients and buffers."""

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

from dni_fx.capture.axes import batch_size, runs_at_other_batch_sizes
from dni_fx.errors import CaptureError, DniFxError, first_line
from dni_fx.model import Axis, Inputs, describe, in_train_mode, preserved, seed, tensors_in

__all__ = ["verify", "why_no_graph"]

Tensors = dict[str, Tensor]

T = TypeVar("T")

# An unusual number: if the model were traced under this seed, a random number that the trace fixed would go unseen.
_SEED = 7_302_516_489


def why_no_graph(model: nn.Module, inputs: Inputs) -> str:
    """Run forward a few times, and find side effects that no graph can have.

    Returns:
        The reason why no graph computes the same as the model; empty if there is none.

    Raises:
        DniFxError: If the model does not run on the inputs, or returns no tensor that carries gradient.
    """
    try:
        _, gradients, _ = _train_step(model, model, inputs)
        with preserved(model), torch.no_grad():
            in_train_mode(model)
            _call(model, inputs)
            attributes, generators = _attributes(model), _generator_states()
            _call(model, inputs)
            draws = _generator_states() != generators
            changed = [name for name, value in _attributes(model).items() if attributes.get(name, value) is not value]
    except Exception as error:  # user code may raise any error
        shapes = "; ".join(describe(inputs))
        raise DniFxError(f"the model does not run on the example inputs ({shapes}): {first_line(error)}") from None
    if not gradients and any(p.requires_grad for p in model.parameters()):
        raise DniFxError(f"forward of {type(model).__name__} returns no tensor that carries gradient to a parameter")
    if changed:
        return f"forward assigns {changed[0]} at every call, which no graph does"
    if draws:
        return "forward draws random numbers from Python or numpy, which a graph would fix"
    return ""


def _generator_states() -> tuple[Any, ...]:
    """The states of Python's and numpy's random number generators."""
    numpy = sys.modules.get("numpy")
    _, keys, position, *_ = (None, b"", 0) if numpy is None else numpy.random.get_state()
    return random.getstate(), bytes(keys), position


def _attributes(model: nn.Module) -> dict[str, Any]:
    """The plain attributes of all modules, by path: no parameters, buffers or submodules.

    Equal numbers and equal strings are one object, so that `is` compares them by value.
    """
    return {
        f"{path}.{name}".lstrip("."): sys.intern(repr(value)) if isinstance(value, int | float | str) else value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if not name.startswith("_") or isinstance(value, Tensor)
    }


def verify(model: nn.Module, captured: nn.Module, inputs: Inputs) -> None:
    """Compare outputs, gradients of every parameter and buffers after a step, then eval mode and other batch sizes.

    Both modules share their parameters. The model must run on the inputs; its state is restored.

    Raises:
        CaptureError: If a check fails; the message names the first that did.
    """
    expected = _train_step(model, model, inputs)
    got = _attempt("in train mode", lambda: _train_step(captured, model, inputs))
    for compared, eager, traced in zip(("outputs", "gradients", "buffers"), expected, got, strict=True):
        _compare(f"{compared} in train mode", eager, traced)
    _compare(
        "outputs in eval mode",
        _outputs(model, inputs, train=False),
        _attempt("in eval mode", lambda: _outputs(captured, inputs, train=False)),
    )
    axes: tuple[Axis, ...] = ()
    for rows in _other_batch_sizes(inputs):
        found = runs_at_other_batch_sizes(inputs, partial(_outputs_if_taken, model), [rows], axes)
        if found is None:
            continue
        axes = found.axes
        where = f"for another batch size ({rows} rows)"
        traced = _attempt(where, partial(_outputs, captured, found.inputs, train=True))
        _compare(f"outputs {where}", found.result, traced)


def _outputs_if_taken(model: nn.Module, inputs: Inputs) -> Tensors | None:
    try:
        return _outputs(model, inputs, train=True)
    except Exception:  # user code may raise any error, if the model itself does not take this batch size
        return None


def _other_batch_sizes(inputs: Inputs) -> list[int]:
    """One row more than in the example; and one row, which the last batch of an epoch may have."""
    rows = batch_size(inputs)
    return [rows + 1, 1] if rows > 1 else [rows + 1] if rows else []


def _attempt(where: str, run: Callable[[], T]) -> T:
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # fx prints the line of generated code
            return run()
    except Exception as error:  # a wrong graph may raise any error
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
        with torch.no_grad():  # a module that counts its calls returns other values at the second
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
    with warnings.catch_warnings():  # the model's warnings are for the user's own calls
        warnings.simplefilter("ignore")
        output: Any = module(*fresh.args, **fresh.kwargs)
    tensors = tensors_in(output)
    return {f"{i} of {len(tensors)}": tensor for i, tensor in enumerate(tensors)}


def _compare(compared: str, eager: Tensors, traced: Tensors) -> None:
    advice = (
        "The trace is not the same network: no_grad and autocast blocks, custom autograd functions, hooks and buffers "
        "written in forward do not survive it. Move that part into a submodule of its own, which is kept whole"
    )
    if eager.keys() != traced.keys():
        names = ", ".join(sorted(eager.keys() ^ traced.keys())[:3])
        raise CaptureError(f"{compared} differ from the eager model's: {names} only in one of them. {advice}")
    for name, expected in eager.items():
        got = traced[name]
        try:
            torch.testing.assert_close(got, expected, equal_nan=True)
        except AssertionError:
            largest = ""
            if got.shape == expected.shape and got.numel():
                difference = got.detach().to(torch.float64) - expected.detach().to(torch.float64)
                largest = f" by up to {float(difference.abs().max()):.2g}"
            raise CaptureError(f"{compared} differ from the eager model's: {name}{largest}. {advice}") from None
