"""Find the tensors whose samples lie in another order than the samples of the inputs, and so the labels.

If forward keeps the order, the permuted samples of an example give the permuted samples of every tensor, also where
samples are mixed, as in batch norm. Where they do not, one sample is changed: the changes must be in its own entries.
"""

import itertools
import logging
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dni_fx.capture.axes import batch_size, runs_at_other_batch_sizes
from dni_fx.errors import first_line
from dni_fx.graph import NodeRecord, record_of
from dni_fx.model import Axis, Inputs, any_fake, in_train_mode, preserved, quiet, seed
from dni_fx.runtime import DecoupledModule

__all__ = ["find_order", "warn_of_rows"]

_log = logging.getLogger(__name__)

_SEED = 7_302_516_491

_SIZES = (6, 8)  # the batch: forward may reverse the order, or split it by two, so fewer samples show too little

_FEATURES = 256  # of each sample that are compared, at most

_DIFFERENT = 0.1  # of the spread of the samples

_OWN = 0.3  # a sample has at least this share of the changes in its own entries

_NOISE = 0.05  # relative to the largest entry

_TINY = 1e-5  # relative: rounding

_DRAWS = frozenset(
    {"bernoulli_", "exponential_", "normal_", "rand", "rand_like", "randn", "randn_like", "uniform_"}
)  # operations whose results are noise alone

Values = Mapping[str, Tensor | None]  # by node: (samples, entries for each, features); None: not compared


def find_order(net: DecoupledModule, inputs: Inputs) -> None:
    """Set `reordered` in the records of a captured module, with the axes that `find_axes` found; in train mode."""
    if any_fake(inputs.tensors()):
        _log.debug("the order of samples in %s is not known: its inputs have no values", type(net).__name__)
        return
    records = {node.name: record_of(node) for node in net.graph.nodes}
    rows = batch_size(inputs)

    def run(other: Inputs) -> Values | None:
        def read(node: str, tensor: Tensor) -> Tensor | None:
            return _by_sample(records[node], tensor, rows, batch_size(other))

        grad = not net.dni_runs_graph  # the front end modules counts the calls with gradient
        try:
            with preserved(net), torch.set_grad_enabled(grad), quiet(), _EvenNoise():  # type: ignore[no-untyped-call]
                in_train_mode(net)
                seed(_SEED)
                return net.dni_read(other.map(torch.clone), read)
        except Exception as error:  # user code may raise any error on other values
            _log.debug("the order of samples in %s is not known: %s", type(net).__name__, first_line(error))
            return None

    sizes = [size for size in (*_SIZES, 2 * rows, 4 * rows) if size not in (0, rows)]
    found = runs_at_other_batch_sizes(inputs, lambda other: run(_varied(other)), [*sizes, rows])
    if found is None:
        return
    varied = _varied(found.inputs)
    order = _cycle(found.sizes[1])
    permuted = run(_with_samples(varied, found.axes, lambda samples: samples[order]))
    suspects = [] if permuted is None else _that_differ(found.result, permuted, order)
    for sample in range(0, len(order), max(1, len(order) // _SIZES[0])) if suspects else ():
        changed = run(_with_samples(varied, found.axes, partial(_with_other, index=sample))) or {}
        for name in suspects:
            if _is_elsewhere(found.result.get(name), changed.get(name), sample):
                records[name].reordered = True


def warn_of_rows(net: DecoupledModule, crossing: Iterable[str]) -> None:
    """Warn if labels go to a tensor with several rows for each sample that are not next to each other.

    Args:
        crossing: The nodes whose values cross a cut.
    """
    names = set(crossing)
    for node in net.graph.nodes:
        record = record_of(node)
        if node.name in names and record.reordered and record.rows != 1:
            warnings.warn(
                f"{node.name}, of shape {list(record.shape or ())}, crosses a cut, and its rows are not sample by "
                "sample in the order of the inputs: give dni_context a label for each row, in the order of these rows",
                stacklevel=2,
            )
            return


class _EvenNoise(TorchDispatchMode):
    """Draws the same number for all entries of a tensor: the noise of a dropout would differ from sample to sample.

    Vectors stay random: forward may sort one to draw an order of the samples.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in _DRAWS and result.dim() > 1 and result.numel():
            result.fill_(result.max())
        return result


def _by_sample(record: NodeRecord, tensor: Tensor, rows: int, samples: int) -> Tensor | None:
    """Some features of each entry of the batch axis, by sample; None: the tensor is no map of samples to entries.

    Args:
        rows: The samples in the example, from which the shape in the record comes.
        samples: The samples in the tensor.
    """
    shape, batch = record.shape, record.batch
    if not (record.carries_gradient and shape and batch is not None and tensor.is_floating_point()):
        return None
    each = tensor.shape[batch] // samples if len(shape) == tensor.dim() else 0
    # Another axis that follows the batch, as in (N, N), has the samples in its own order.
    if not each or tensor.shape != (*shape[:batch], each * samples, *shape[batch + 1 :]) or shape[batch] != each * rows:
        return None
    entries = tensor.detach().movedim(batch, 0).reshape(tensor.shape[batch], -1)
    count = entries.shape[1]
    picked = torch.linspace(0, count - 1, min(count, _FEATURES)).long()
    return entries[:, picked.to(entries.device)].to("cpu", torch.float64).reshape(samples, each, -1)


def _varied(inputs: Inputs) -> Inputs:
    """The inputs with samples that differ: an example may be zeros, or one sample that is repeated."""
    generator = torch.Generator().manual_seed(_SEED)

    def vary(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        if tensor.is_floating_point():
            return tensor + _noise(tensor, tensor, generator)
        if tensor.dtype is torch.bool or tensor.is_complex() or not tensor.dim() or not tensor.numel():
            return tensor
        if tensor.dim() > 1:
            repeats = len(tensor.unique(dim=0)) < len(tensor)
            return torch.stack([row.roll(i, -1) for i, row in enumerate(tensor)]) if repeats else tensor
        odd = (torch.arange(len(tensor), device=tensor.device) + 1) % 2  # such as lengths, which decide an order
        return tensor - odd.to(tensor.dtype) if int(tensor.min()) == int(tensor.max()) > 1 else tensor

    return inputs.map(vary)


def _noise(part: Tensor, tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Noise in the shape of `part`, small beside the entries of `tensor`."""
    noise = torch.rand(part.shape, generator=generator, dtype=torch.float64).to(tensor)
    largest = tensor.abs().masked_fill(~tensor.isfinite(), 0).amax() if tensor.numel() else 0
    return noise * _NOISE * (largest or 1)


def _with_samples(inputs: Inputs, axes: Iterable[Axis], change: Callable[[Tensor], Tensor]) -> Inputs:
    """The inputs with `change` applied to each tensor that has samples; `change` gets them along the first axis."""
    numbers, batch = itertools.count(), dict(axes)

    def changed(tensor: Tensor) -> Tensor:
        axis = batch.get(next(numbers))
        return tensor if axis is None else change(tensor.movedim(axis, 0)).movedim(0, axis)

    return inputs.map(changed)


def _with_other(samples: Tensor, index: int) -> Tensor:
    """The samples with one of them changed, but not so that its place in an order of samples changes.

    Integers come from the next sample, except zeros, which may be padding, and except single ones, such as a length.
    """
    samples = samples.clone()
    one, following = samples[index], samples[(index + 1) % len(samples)]
    if samples.is_floating_point():
        samples[index] += _noise(one, samples, torch.Generator().manual_seed(_SEED + 1))
    elif samples.dtype is not torch.bool and samples.dim() > 1:
        samples[index] = torch.where((one != 0) & (following != 0), following, one)
    return samples


def _cycle(count: int) -> Tensor:
    """A permutation of all samples in one cycle.

    Only its own powers commute with it: no reversal, rotation or split, which would go unseen.
    """
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(_SEED))
    order = torch.empty_like(drawn)
    order[drawn] = drawn.roll(-1)
    return order


def _that_differ(values: Values, permuted: Values, order: Tensor) -> list[str]:
    """The nodes at which the permuted samples do not give the permuted values."""
    return [
        name
        for name, before in values.items()
        if before is not None
        and (after := permuted.get(name)) is not None
        and after.shape == before.shape
        and float((after - before[order]).norm()) > _DIFFERENT * float((before - before.mean(0)).norm())
    ]


def _is_elsewhere(before: Tensor | None, after: Tensor | None, sample: int) -> bool:
    """Whether the values change at the entries of other samples than the one that has changed."""
    if before is None or after is None or before.shape != after.shape:
        return False
    changes = (after - before).square().sum((1, 2))
    total = float(changes.sum())
    return total > (_TINY * float(before.norm())) ** 2 and float(changes[sample]) < _OWN * total
