"""Exact live tensor bytes of a training step, op by op, on any device.

`training_peak(step)` runs a step, and returns the peak, the op at the peak, and the storages alive then.
"""

import functools
import gc
import itertools
import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

__all__ = ["LiveBytes", "Point", "allocator_trace", "training_peak"]


@dataclass
class Block:
    """One storage that the step allocated."""

    nbytes: int
    op: str
    phase: str
    shape: tuple[int, ...]
    made: int  # index in `trace`
    gradient: int = -1  # index in `LiveBytes.gradients`, if the storage holds the gradient of a parameter
    reference: weakref.ref[torch.UntypedStorage] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Point:
    """The bytes alive just after an op, its inputs included."""

    op: str
    phase: str  # "forward", "backward" (also in a local backward pass), "optimizer"
    live: int


@dataclass
class Gradient:
    """The gradient of a parameter: the indices in the trace between which it was alive."""

    nbytes: int
    made: int
    freed: int | None = None


def storages(tensor: Tensor) -> Iterator[torch.UntypedStorage]:
    """The storages below a tensor; a wrapper subclass or a sparse tensor has one for each part."""
    if is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            yield from storages(getattr(tensor, name))
    elif tensor.layout == torch.sparse_coo:
        yield from storages(tensor._indices())
        yield from storages(tensor._values())
    else:
        yield tensor.untyped_storage()


class LiveBytes(TorchDispatchMode):
    """Count the storages that ops allocate, from the op that returns a storage until the storage is freed.

    The key of a storage is the identity of its Python object. PyTorch keeps that object while the storage lives, even
    if only C++ (autograd's saved tensors) holds the storage. The callback of a weak reference runs when the storage
    dies, before its address can be used again. A view or an in-place op returns a storage that is counted already; an
    op that resizes the storage changes its size. A storage that first appears as an argument is older than the step
    (parameters, batch, optimizer state): its bytes count in `outside`, not in `live`.

    Memory that a kernel allocates and frees before it returns is not counted: no op returns it.

    Args:
        parameters: Parameters whose gradients are counted apart.
    """

    def __init__(self, parameters: Iterable[nn.Parameter] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self.peak_op = ""
        self.peak_phase = ""
        self.peak_index = -1  # index in `trace`
        self.gradients: list[Gradient] = []
        self.peak_blocks: list[Block] = []
        self.outside = 0  # bytes of the storages that the step uses and that are older than the step
        self.forward_end = 0  # bytes alive when the last backward pass began, with its first gradient (of the loss)
        self.trace: list[Point] = []
        self.blocks: dict[int, Block] = {}  # by id of the storage, while the storage lives
        self._old: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._parameters = tuple(parameters)
        self._optimizers = 0  # optimizer steps that are running
        self._task = -1  # the last backward pass
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        def begin(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            self._optimizers += 1

        def end(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            self._optimizers -= 1

        self._hooks = [register_optimizer_step_pre_hook(begin), register_optimizer_step_post_hook(end)]
        trained = [p for p in self._parameters if p.requires_grad]
        # Mark a gradient before it is accumulated, too: another hook may free it right after.
        self._hooks += [p.register_hook(self._mark_gradient) for p in trained]
        self._hooks += [p.register_post_accumulate_grad_hook(lambda p: self._mark_gradient(p.grad)) for p in trained]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        task = torch._C._current_graph_task_id()  # -1 outside of a backward pass
        phase = "backward" if task != -1 else "optimizer" if self._optimizers else "forward"
        if task > self._task:
            self._task, self.forward_end = task, self.live
        # torch.tensor() allocates outside of all modes; lift_fresh is the first op on the new tensor.
        if func is not torch.ops.aten.lift_fresh.default:
            for tensor in tree_leaves((args, kwargs)):
                if isinstance(tensor, Tensor):
                    for storage in storages(tensor):
                        self._add_old(storage)
        result = func(*args, **kwargs)
        name = str(func)
        written = (args, kwargs) if func._schema.is_mutable else ()
        for tensor in tree_leaves((result, written)):
            if isinstance(tensor, Tensor):
                for storage in storages(tensor):
                    self._count(storage, name, phase, tuple(tensor.shape))
        self.trace.append(Point(name, phase, self.live))
        if self.live > self.peak:
            self._note_peak(name, phase)
        return result

    @property
    def activations(self) -> list[int]:
        """The bytes alive after each op of the trace, without gradients of parameters."""
        change = [0] * (len(self.trace) + 1)
        for gradient in self.gradients:
            change[gradient.made] += gradient.nbytes
            if gradient.freed is not None:
                change[gradient.freed] -= gradient.nbytes
        return [point.live - held for point, held in zip(self.trace, itertools.accumulate(change), strict=False)]

    def _add_old(self, storage: torch.UntypedStorage) -> None:
        """Add an argument to the storages that are older than the step, unless the step made it."""
        key = id(storage)
        if key not in self.blocks and key not in self._old:
            self._old[key] = weakref.ref(storage, lambda _: self._old.pop(key, None))
            self.outside += storage.nbytes()

    def _count(self, storage: torch.UntypedStorage, op: str, phase: str, shape: tuple[int, ...]) -> None:
        """Count a storage that an op returned, or its change of size."""
        key = id(storage)
        if key in self._old:
            return
        block = self.blocks.get(key)
        if block is None:
            reference = weakref.ref(storage, functools.partial(self._free, key))
            self.blocks[key] = block = Block(0, op, phase, shape, len(self.trace), reference=reference)
        self.live += storage.nbytes() - block.nbytes
        block.nbytes = storage.nbytes()

    def _mark_gradient(self, gradient: Tensor | None) -> None:
        """Remember that a storage holds the gradient of a parameter; None: another hook freed the gradient."""
        for storage in storages(gradient) if gradient is not None else ():
            block = self.blocks.get(id(storage))
            if block is not None and block.gradient < 0:
                block.gradient = len(self.gradients)
                self.gradients.append(Gradient(block.nbytes, block.made))

    def _free(self, key: int, reference: object) -> None:
        block = self.blocks.pop(key)
        self.live -= block.nbytes
        if block.gradient >= 0:
            self.gradients[block.gradient].freed = len(self.trace)

    def _note_peak(self, op: str, phase: str) -> None:
        self.peak, self.peak_op, self.peak_phase, self.peak_index = self.live, op, phase, len(self.trace) - 1
        self.peak_blocks = list(self.blocks.values())


def training_peak(step: Callable[[], object], parameters: Iterable[nn.Parameter] = ()) -> LiveBytes:
    """Run a step and count its live bytes. Before, run another step, which makes the optimizer's state, and zero_grad.

    Python's garbage collector is off meanwhile, so that the numbers repeat: tensors in a reference cycle stay alive.
    """
    measured = LiveBytes(parameters)
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        with measured:
            step()
    finally:
        if was_on:
            gc.enable()
    return measured


def allocator_trace(step: Callable[[], object]) -> list[int]:
    """The bytes alive after each allocation of a step, from the events of torch's CPU allocator.

    Temporaries of kernels count, too, and the step may run compiled code.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler writes log lines to stderr otherwise
    gc.collect()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profile:
        step()
    assert profile.profiler is not None and profile.profiler.kineto_results is not None
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    return list(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))
