"""Exact live tensor bytes of a training step, op by op, on any device.

`training_peak(step)` runs a step and says how much was alive at worst, where, and what it was. Running this file checks
the measurement against cases worked out by hand, and against what torch's own CPU allocator reports.

Run:  python benchmarks/live_bytes.py
"""

import functools
import gc
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves


@dataclass
class Block:
    """One storage that the step allocated."""

    nbytes: int
    op: str
    phase: str
    shape: tuple[int, ...]
    reference: weakref.ref[torch.UntypedStorage] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Point:
    """What was alive just after an op, its inputs included."""

    op: str
    phase: str  # "forward", "backward" (of a local backward pass too), "optimizer"
    live: int


def storages(tensor: Tensor) -> Iterator[torch.UntypedStorage]:
    """The storages below a tensor: of a subclass and of a sparse tensor, those of its parts."""
    if is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            yield from storages(getattr(tensor, name))
    elif tensor.layout == torch.sparse_coo:
        yield from storages(tensor._indices())
        yield from storages(tensor._values())
    else:
        yield tensor.untyped_storage()


class LiveBytes(TorchDispatchMode):
    """Counts the storages that ops allocate while it is on, from the op that returns them until they are freed.

    A storage is known by the identity of its Python object. PyTorch keeps that object for as long as the storage
    lives, even while only C++ (autograd's saved tensors) holds it, and a weak reference's callback runs when it dies,
    before the address can be used again. A view or an in-place op returns a storage that is known; one that resizes it
    changes its size. A storage that is first seen as an argument is older than the step (parameters, batch, optimizer
    state): it is not in `live` but in `outside`.

    What a kernel allocates for itself and frees before it returns is not seen: no op returns it.

    Args:
        parameters: Those whose `.grad` is to be told apart at the peak, in `peak_grads`.
    """

    def __init__(self, parameters: Iterable[nn.Parameter] = ()) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self.peak_op = ""
        self.peak_phase = ""
        self.peak_index = -1  # in `trace`
        self.peak_grads = 0  # the part of the peak that was some parameter's .grad
        self.peak_blocks: list[Block] = []
        self.outside = 0  # bytes that are older than the step, of what the step touched
        self.forward_end = 0  # alive when the last backward pass began, its first gradient (of the loss) included
        self.trace: list[Point] = []
        self.blocks: dict[int, Block] = {}  # by id of the storage; a block goes when its storage does
        self._old: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._parameters = tuple(parameters)
        self._optimizers = 0  # steps that are running
        self._task = -1
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        def begin(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            self._optimizers += 1

        def end(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            self._optimizers -= 1

        self._hooks = [register_optimizer_step_pre_hook(begin), register_optimizer_step_post_hook(end)]
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        task = torch._C._current_graph_task_id()  # -1 outside of a backward pass
        phase = "backward" if task != -1 else "optimizer" if self._optimizers else "forward"
        if task > self._task:
            self._task, self.forward_end = task, self.live
        # torch.tensor() fills a tensor where no mode sees it, and this is its first op.
        if func is not torch.ops.aten.lift_fresh.default:
            for tensor in tree_leaves((args, kwargs)):
                if isinstance(tensor, Tensor):
                    for storage in storages(tensor):
                        self._meet(storage)
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

    def _meet(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key not in self.blocks and key not in self._old:
            self._old[key] = weakref.ref(storage, lambda _: self._old.pop(key, None))
            self.outside += storage.nbytes()

    def _count(self, storage: torch.UntypedStorage, op: str, phase: str, shape: tuple[int, ...]) -> None:
        key = id(storage)
        if key in self._old:
            return
        block = self.blocks.get(key)
        if block is None:
            reference = weakref.ref(storage, functools.partial(self._free, key))
            self.blocks[key] = block = Block(0, op, phase, shape, reference)
        self.live += storage.nbytes() - block.nbytes
        block.nbytes = storage.nbytes()

    def _free(self, key: int, reference: object) -> None:
        self.live -= self.blocks.pop(key).nbytes

    def _note_peak(self, op: str, phase: str) -> None:
        self.peak, self.peak_op, self.peak_phase, self.peak_index = self.live, op, phase, len(self.trace) - 1
        self.peak_blocks = list(self.blocks.values())
        grads = {id(s) for p in self._parameters if p.grad is not None for s in storages(p.grad)}
        self.peak_grads = sum(self.blocks[key].nbytes for key in grads if key in self.blocks)


def training_peak(step: Callable[[], object], parameters: Iterable[nn.Parameter] = ()) -> LiveBytes:
    """Run a step and measure it. Take a step before, so that the optimizer's state is there, and erase the gradients.

    Python's garbage collector is off meanwhile, so that the numbers repeat: what is in a reference cycle stays.
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


def allocator_peak(step: Callable[[], object]) -> int:
    """The peak that torch's CPU allocator reports to the profiler: what kernels allocate for themselves counts too."""
    gc.collect()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    assert profile.profiler is not None and profile.profiler.kineto_results is not None
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


# ------------------------------------------------------------------------------------------- self-check
def check_no_graph() -> None:
    x = torch.rand(1000)
    size = x.untyped_storage().nbytes()
    with LiveBytes() as m:
        y = x + 1
        assert (m.live, m.peak, m.outside) == (size, size, size)
        view = y.view(10, 100).t()[2:].detach()
        y.add_(1).relu_()
        y[3:5].zero_()
        assert (m.live, m.peak) == (size, size), "views and in-place ops add nothing"
        del y
        assert m.live == size, "a view keeps its storage"
        del view
        assert m.live == 0
        y = (x * 2).exp() + 1
        assert (m.live, m.peak) == (size, 2 * size), "temporaries come and go"
        out = torch.empty(0)
        torch.add(x, 1, out=out)
        assert m.live == 2 * size, "an op that resizes"
        del y, out
        for _ in range(3000):  # addresses are used again
            _ = (x + 1).view(-1)
        del _
        fresh = torch.tensor([1.0, 2.0])
        assert (m.live, m.blocks[id(fresh.untyped_storage())].nbytes) == (8, 8)
        x.mul_(2)
        assert m.outside == size and m.live == 8, "what is older does not become new"
    assert all(p.phase == "forward" for p in m.trace) and m.trace[-1].live == 8


def check_chain(length: int = 5) -> None:
    """relu saves its result. The worst is the second backward op: all results, as `y` holds the last; 2 gradients."""
    x = torch.rand(1000, requires_grad=True)

    def step() -> None:
        y = x
        for _ in range(length):
            y = y.relu()
        y.sum().backward()

    m = training_peak(step)
    size, scalars = 4000, 8  # the loss and its gradient
    assert m.forward_end == length * size + scalars, m.forward_end
    assert (m.peak, m.peak_phase) == ((length + 2) * size + scalars, "backward"), m.peak
    assert m.peak_op == "aten.threshold_backward.default" and m.trace[m.peak_index].live == m.peak
    assert m.live == size, "x.grad is left"
    x.grad = None
    assert m.live == 0
    assert training_peak(step).trace == m.trace, "it repeats"
    x.grad = None
    assert allocator_peak(step) == m.peak


def check_linears(batch: int = 32, width: int = 64, depth: int = 4) -> None:
    """Linear saves its input, relu its result: one tensor a layer, and the mean saves nothing."""
    net = nn.Sequential(*(layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())))
    optimizer = torch.optim.Adam(net.parameters())
    x = torch.rand(batch, width)

    def step() -> None:
        net(x).mean().backward()
        optimizer.step()

    step()
    optimizer.zero_grad()
    m = training_peak(step, net.parameters())
    grads = sum(p.numel() for p in net.parameters()) * 4
    assert m.forward_end == depth * batch * width * 4 + 8, m.forward_end
    assert m.live == grads, "the gradients are left, and nothing else"
    assert m.peak >= grads >= m.peak_grads
    assert {p.phase for p in m.trace} == {"forward", "backward", "optimizer"}
    optimizer.zero_grad()
    assert m.live == 0
    # Within Adam's division by a Python number, that number is a tensor for the kernel, twice: as float64 and float32.
    assert allocator_peak(step) == m.peak + 12


def check_nested() -> None:
    """A local backward pass during forward frees its graph before the next part runs."""
    x = torch.rand(1000, requires_grad=True)

    def part(h: Tensor) -> Tensor:
        h = h.exp().exp().exp()
        h.backward(torch.ones_like(h))
        return h.detach().requires_grad_()

    def step() -> None:
        h = part(x)
        h.exp().sum().backward()

    m = training_peak(step)
    # Of part: three results, the gradient given (held by the caller), that of the node before and of this one.
    assert m.peak == 6 * 4000 and m.peak_phase == "backward", (m.peak, m.peak_op)
    assert m.forward_end == 3 * 4000 + 8, m.forward_end  # h, its exp, and x.grad
    phases = [p.phase for p in m.trace]
    assert phases.index("backward") < len(phases) - 1 - phases[::-1].index("forward")
    assert m.live == 4000, m.live  # x.grad; h and with it h.grad are gone
    x.grad = None
    assert allocator_peak(step) == m.peak


def main() -> None:
    for check in (check_no_graph, check_chain, check_linears, check_nested):
        check()
        print(f"{check.__name__}: ok")


if __name__ == "__main__":
    main()
