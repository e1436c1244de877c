"""Never trust a capture: run it beside the eager model, and compare."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dni_fx.errors import CaptureError, DniFxError, first_line
from dni_fx.inputs import Inputs, describe
from dni_fx.ops import batch_size
from dni_fx.preserve import preserved

__all__ = ["runs", "verify"]

State = dict[str, Tensor]
T = TypeVar("T")
# Not one that people use: a random number fixed by a trace under the same seed would pass for a fresh one.
_SEED = 7_302_516_489


def runs(model: nn.Module, inputs: Inputs) -> None:
    """Run one training step of the model.

    Raises:
        DniFxError: If it does not run on the inputs.
    """
    try:
        _train_step(model, model, inputs)
    except Exception as error:
        shapes = "; ".join(describe(inputs))
        raise DniFxError(f"the model does not run on the example inputs ({shapes}): {first_line(error)}") from None


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
        return run()
    except Exception as error:
        raise CaptureError(
            f"the graph fails {where}: {first_line(error)}. Write sizes in forward in terms of x.shape, or move that "
            "part into a submodule of its own, which is kept whole"
        ) from None


def _train_step(module: nn.Module, owner: nn.Module, inputs: Inputs) -> tuple[State, State, State]:
    parameters = {name: p for name, p in owner.named_parameters() if p.requires_grad}
    with preserved(module), torch.enable_grad():
        _seed(module, train=True)
        outputs = _call(module, inputs)
        heads = [o for o in outputs.values() if o.requires_grad]
        gradients: State = {}
        if heads and parameters:
            weights = [torch.randn_like(h) for h in heads]
            found = torch.autograd.grad(heads, list(parameters.values()), weights, allow_unused=True)
            gradients = {n: g for n, g in zip(parameters, found, strict=True) if g is not None}
        buffers = {name: b.detach().clone() for name, b in owner.named_buffers()}
        with torch.no_grad():  # what counts its calls gives something else the second time
            again = {f"{name}, second call": o for name, o in _call(module, inputs).items()}
        return outputs | again, gradients, buffers


def _outputs(module: nn.Module, inputs: Inputs, *, train: bool) -> State:
    with preserved(module), torch.no_grad():
        _seed(module, train=train)
        return _call(module, inputs)


def _seed(module: nn.Module, *, train: bool) -> None:
    module.train(train)
    torch.manual_seed(_SEED)


def _call(module: nn.Module, inputs: Inputs) -> State:
    fresh = inputs.map(lambda t: t.detach().clone())  # a model may write to its input
    output: Any = module(*fresh.args, **fresh.kwargs)
    leaves, spec = pytree.tree_flatten(output)
    return {f"{i} of {spec.num_leaves}": leaf for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}


def _compare(what: str, eager: State, traced: State) -> None:
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
