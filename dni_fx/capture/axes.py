"""Find the axes of every tensor that follow the batch, or another size of the inputs: run other sizes, and compare."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from dni_fx.errors import first_line
from dni_fx.graph import NodeRecord, fixed_axes, record_of
from dni_fx.model import Axis, Inputs, fake_mode, in_train_mode, preserved, quiet
from dni_fx.runtime import DecoupledModule

__all__ = [
    "Run",
    "batch_size",
    "find_axes",
    "runs_at_other_batch_sizes",
    "runs_at_other_lengths",
    "sizes_near_first",
    "warn_of_time_first_inputs",
]

_log = logging.getLogger(__name__)

T = TypeVar("T")

_SMALL = 100_000  # numbers in the parameters and inputs

Shapes = Mapping[str, tuple[int, ...]]  # by node


@dataclass(frozen=True)
class Run(Generic[T]):
    """A run of a model on the example inputs with one size changed."""

    axes: tuple[Axis, ...]  # of the inputs
    sizes: tuple[int, int]  # before and after
    inputs: Inputs
    result: T


def runs_at_other_batch_sizes(
    inputs: Inputs, run: Callable[[Inputs], T | None], sizes: Sequence[int] = (), axes: tuple[Axis, ...] = ()
) -> Run[T] | None:
    """The first run with another batch size; None: the model takes none.

    Args:
        run: Returns None where the model does not take the inputs.
        sizes: The sizes to try; none: a few.
        axes: The axes of the inputs that are the batch; none: they are to be found.
    """
    rows = batch_size(inputs)
    if not rows:  # an empty batch has no row to repeat
        return None
    sizes = sizes or sizes_far_first(rows)
    if axes:
        return _first_run(inputs, [axes], rows, sizes, run)
    likely, *others = _possible_batch_axes(inputs) or [()]
    found = _first_run(inputs, [likely], rows, sizes, run)
    # A single row fits to other inputs of any number of rows, by broadcasting.
    return found or _first_run(inputs, others, rows, [size for size in sizes if size > 1], run)


def sizes_far_first(size: int) -> list[int]:
    """Twice the size, since a stride may round a small change away; nearer sizes, for models with limits."""
    return [other for other in dict.fromkeys((2 * size, size + 1, size - 1)) if other > 0]


def sizes_near_first(size: int) -> list[int]:
    """One more, which costs little time; other sizes, for models that take multiples or shorter inputs alone."""
    return [other for other in dict.fromkeys((size + 1, 2 * size, size - 1)) if other > 0]


def runs_at_other_lengths(
    inputs: Inputs,
    without: Collection[Axis],
    run: Callable[[Inputs], T | None],
    sizes_of: Callable[[int], Sequence[int]] = sizes_far_first,
) -> list[Run[T]]:
    """One run for each other size of the inputs that may change, where axes of one size change together.

    Args:
        without: Axes that stay as they are, such as the batch.
        run: Returns None where the model does not take the inputs.
        sizes_of: The sizes to try in the place of a size.
    """
    axes_by_size: dict[int, list[Axis]] = {}
    for number, tensor in enumerate(inputs.tensors()):
        for axis, size in enumerate(tensor.shape):
            if (number, axis) not in without:
                axes_by_size.setdefault(size, []).append((number, axis))
    found: list[Run[T]] = []
    for size, axes in axes_by_size.items():
        together = _first_run(inputs, [tuple(axes)], size, sizes_of(size), run)
        if together is not None:
            found.append(together)
            continue
        apart = {place: tuple(axis for axis in axes if axis[1] == place) for _, place in axes}
        if len(apart) > 1:  # two sizes that are equal in the example alone
            each = [_first_run(inputs, [some], size, sizes_of(size), run) for some in apart.values()]
            found += [one for one in each if one is not None]
    return found


def batch_size(inputs: Inputs) -> int:
    """The size of the first axis of the first input that has axes; 0: there is none."""
    return next((tensor.shape[0] for tensor in inputs.tensors() if tensor.dim()), 0)


def _possible_batch_axes(inputs: Inputs) -> list[tuple[Axis, ...]]:
    """The axes that may be the batch, as sets of one axis a tensor, the most likely set first.

    The first input is batch first. Another input of the same size may not be: a mask (T, T), a state (layers, N, F).
    """
    sized = [(number, tensor) for number, tensor in enumerate(inputs.tensors()) if tensor.dim()]
    if not sized:
        return []
    rows, first = batch_size(inputs), (sized[0][0], 0)
    alike = [(number, 0) for number, tensor in sized if tensor.shape[0] == rows]
    anywhere = [(n, list(tensor.shape).index(rows)) for n, tensor in sized if rows in tensor.shape]
    last = [first, *((n, t.dim() - 1 - list(t.shape)[::-1].index(rows)) for n, t in sized[1:] if rows in t.shape)]
    without_one = [[axis for axis in alike if axis != other] for other in alike if other != first]
    return list(dict.fromkeys(map(tuple, (alike, anywhere, last, *without_one, [first]))))


def _first_run(
    inputs: Inputs,
    choices: Iterable[tuple[Axis, ...]],
    size: int,
    sizes: Sequence[int],
    run: Callable[[Inputs], T | None],
) -> Run[T] | None:
    for axes in choices:
        for other in sizes:
            resized = inputs.resized(dict.fromkeys(axes, other))
            result = run(resized)
            if result is not None:
                return Run(axes, (size, other), resized, result)
    return None


def find_axes(net: DecoupledModule, inputs: Inputs) -> None:
    """Write the batch axis and the free axes into the records of a captured, annotated module.

    A feature axis that is one of them gives way to an axis of fixed size, if there is one.
    """
    batch, lengths = _runs_of(net, inputs)
    for node in net.graph.nodes:
        record = record_of(node)
        if record.shape:
            _find_batch(record, node.name, batch_size(inputs), batch)
            _find_free(record, node.name, lengths)
            _move_features(record)


def warn_of_time_first_inputs(net: DecoupledModule) -> None:
    """Warn if a layer that takes (time, batch, features) gets the inputs' first axis as its time.

    Labels go to the entries of the first axis, which may be time steps, and of the same number as the samples.
    """
    for node in net.graph.nodes:
        if node.op != "call_module" or not _is_time_first(net.get_submodule(str(node.target))):
            continue
        tensors = node.all_input_nodes if net.dni_runs_graph else [node, *node.users]
        shaped = [record for record in map(record_of, tensors) if record.shape]
        if shaped and len(shaped[0].shape or ()) == 3 and shaped[0].batch == 0:
            warnings.warn(
                f"{node.target} takes (time, batch, features), but the first axis of the inputs is its time. dni-fx "
                "pairs labels with the first axis. If the inputs are time first, transpose them in forward; if they "
                "are batch first, give the layer batch_first=True",
                stacklevel=2,
            )
            return


def _is_time_first(module: nn.Module) -> bool:
    return any(getattr(part, "batch_first", True) is False for part in module.modules())


def _runs_of(net: DecoupledModule, inputs: Inputs) -> tuple[Run[Shapes] | None, list[Run[Shapes]]]:
    """The shapes at another batch size, and at other lengths; on real tensors if nothing runs on fake ones.

    A small model runs faster on real tensors.
    """
    mode = fake_mode(inputs.tensors())
    real: tuple[Inputs, AbstractContextManager[Any]] = (inputs.map(torch.detach), contextlib.nullcontext())
    is_small = sum(t.numel() for t in (*net.parameters(), *inputs.tensors())) <= _SMALL
    for example, context in [real] if is_small else [(inputs.map(lambda t: mode.from_tensor(t.detach())), mode), real]:

        def run(other: Inputs, context: AbstractContextManager[Any] = context) -> Shapes | None:
            try:
                with preserved(net), torch.enable_grad(), quiet(), context:
                    in_train_mode(net)
                    return net.dni_shapes(other.map(torch.clone))
            except Exception as error:  # user code may raise any error on other sizes
                _log.debug("%s does not take other sizes: %s", type(net).__name__, first_line(error))
                return None

        batch = runs_at_other_batch_sizes(example, run)
        lengths = runs_at_other_lengths(example, batch.axes if batch else [(0, 0)], run)
        if batch or lengths:
            break
    return batch, lengths


def _find_batch(record: NodeRecord, name: str, rows: int, batch: Run[Shapes] | None) -> None:
    """Set the batch axis, and its entries for each sample; further axes that follow the batch are free."""
    assert record.shape is not None
    after = batch.result.get(name, ()) if batch else ()
    if batch is None or len(after) != len(record.shape):  # not known: an axis that is as long as the batch
        alike = [axis for axis, size in enumerate(record.shape) if size == rows and len(record.shape) > 1]
        record.batch, record.rows, record.free = (alike[0] if alike else None), 1, frozenset()
        return
    entries: dict[int, int] = {}
    for axis, (size, other) in enumerate(zip(record.shape, after, strict=True)):
        if size != other:
            each = size // rows
            entries[axis] = each if (each * rows, each * batch.sizes[1]) == (size, other) else 0
    # The axis with one entry a sample; else one with several; else one whose entries vary.
    record.batch = min(entries, key=lambda axis: (entries[axis] != 1, entries[axis] == 0, axis), default=None)
    record.rows = 1 if record.batch is None else entries[record.batch]
    record.free = frozenset(entries) - {record.batch}


def _find_free(record: NodeRecord, name: str, lengths: Iterable[Run[Shapes]]) -> None:
    assert record.shape is not None
    for run in lengths:
        after = run.result.get(name, ())
        if len(after) == len(record.shape):
            changed = {axis for axis, size in enumerate(record.shape) if size != after[axis]}
            record.free |= changed - {record.batch}
            if record.batch in changed:  # such as (N * T, F)
                record.rows = 0


def _move_features(record: NodeRecord) -> None:
    """Make the feature axis an axis of fixed size; if there is none, any axis beside the batch."""
    assert record.shape is not None
    rank = len(record.shape)
    fixed = fixed_axes(record)
    others = [axis for axis in range(rank) if axis != record.batch]
    axis = record.axis % rank
    if axis not in fixed and others:
        axis = (fixed or others)[-1]
    record.axis = -1 if axis == rank - 1 else axis  # the last axis stays the last one where a call has more axes
