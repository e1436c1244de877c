"""Memory and time of a training step: backprop, what else saves memory, and this tool; side by side in one run."""

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dni_fx import api
from dni_fx.cutting import Cuts
from dni_fx.errors import DniFxError, first_line
from dni_fx.inputs import Inputs, tensors_in
from dni_fx.live_bytes import allocator_trace, training_peak
from dni_fx.synthesizers import Factory

__all__ = ["Options", "Row", "bench", "parse_segments", "segments", "ways"]

WARM_UP = 2  # steps before the first measured one: optimizer state, caches, compilers


class Ratio(NamedTuple):
    """Median, and 10th and 90th percentile."""

    median: float
    low: float
    high: float


NOT_MEASURED = Ratio(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Row:
    """What was measured of one way to train.

    Attributes:
        activations: The most bytes alive at once that the step made, gradients of parameters not counted.
        peak: The same, all counted; parameters, optimizer state and the batch are older than the step.
        milliseconds: Median time of a step.
        ratio: Of its time to that of backprop's step just before.
        trace: Bytes alive after each operation.
        failed: Why nothing was measured.
    """

    name: str
    activations: int = 0
    peak: int = 0
    milliseconds: float = 0.0
    ratio: Ratio = NOT_MEASURED
    trace: tuple[int, ...] = ()
    failed: str = ""


@dataclass(frozen=True)
class Options:
    """What is compared, and how.

    Args:
        cuts: As in `dni_fx.transform`, by the name of their row. A second row is with step="segment": "stepping".
        steps: Timed steps of each.
        synthesizer: As in `dni_fx.transform`.
        classes: Condition the synthesizers on so many labels.
        loss: Of the outputs; None: the mean square of each.
        optimizer: Makes an optimizer from parameters.
        others: Compare with checkpointing and the like, too.
    """

    cuts: Mapping[str, Cuts] = field(default_factory=lambda: segments(2, 4, 8, "auto"))
    steps: int = 10
    synthesizer: str | Factory = "auto"
    classes: int | None = None
    loss: Callable[[Any], Tensor] | None = None
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = torch.optim.Adam
    others: bool = True

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise DniFxError(f"steps={self.steps}: two or more, for a spread")


@dataclass
class Trainee:
    """A net that is trained in one of the ways."""

    net: nn.Module
    optimizer: torch.optim.Optimizer | None  # None: it steps by itself
    inputs: Inputs
    options: Options

    def step(self, *, zero_grad: bool = True) -> None:
        if self.optimizer is not None and zero_grad:
            self.optimizer.zero_grad()
        output = self.net(*self.inputs.args, **self.inputs.kwargs)
        loss = mean_square if self.options.loss is None else self.options.loss
        loss(output).backward()
        del output
        if self.optimizer is not None:
            self.optimizer.step()

    @property
    def on_gpu(self) -> bool:
        return any(p.is_cuda for p in self.net.parameters())

    def seconds(self) -> float:
        """Of one step."""
        if not self.on_gpu:
            start = time.perf_counter()
            self.step()
            return time.perf_counter() - start
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        self.step()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) / 1e3


def mean_square(output: Any) -> Tensor:
    """A loss for any output."""
    squares = [t.square().mean() for t in tensors_in(output) if t.requires_grad]
    if not squares:
        raise DniFxError("no output carries gradient")
    return sum(squares[1:], start=squares[0])


def bench(
    model: nn.Module, inputs: Inputs, options: Options, progress: Callable[[str], None] = lambda name: None
) -> Iterator[Row]:
    """Measure each way to train a model, one after the other; each in turn with backprop, which is the first row.

    Args:
        model: In train mode; it is copied, and left as it is.
        progress: Told the name of the way that comes next.

    Raises:
        DniFxError: If the model cannot be trained at all.
    """
    progress("backprop")
    try:
        own = copy.deepcopy(model)
    except Exception as error:
        raise DniFxError(f"the model cannot be copied, so nothing can be compared: {first_line(error)}") from None
    try:
        backprop = _prepared(_backprop(own, inputs, options))
    except Exception as error:
        raise DniFxError(f"the model cannot be trained on these inputs: {first_line(error)}") from None
    yield _measured("backprop", backprop, backprop)
    for name, make in ways(options):
        progress(name)
        try:
            yield _measured(name, backprop, _prepared(make(copy.deepcopy(model), inputs, options)))
        except Exception as error:
            yield Row(name, failed=first_line(error))


def _prepared(trainee: Trainee) -> Trainee:
    trainee.net.train()
    for _ in range(WARM_UP):
        trainee.step()
    return trainee


def _measured(name: str, backprop: Trainee, trainee: Trainee) -> Row:
    trainee.net.zero_grad()
    activations, peak, trace = _gpu_memory(trainee) if trainee.on_gpu else _memory(trainee)
    pairs = [_in_turn(backprop, trainee, first=bool(turn % 2)) for turn in range(trainee.options.steps)]
    tenths = statistics.quantiles([own / other for other, own in pairs], n=10, method="inclusive")
    milliseconds = 1e3 * statistics.median(own for _, own in pairs)
    return Row(name, activations, peak, milliseconds, Ratio(tenths[4], tenths[0], tenths[8]), trace)


def _in_turn(backprop: Trainee, trainee: Trainee, *, first: bool) -> tuple[float, float]:
    """Seconds of both; who comes second has the caches warm."""
    if first:
        own = trainee.seconds()
        return backprop.seconds(), own
    return backprop.seconds(), trainee.seconds()


def _memory(trainee: Trainee) -> tuple[int, int, tuple[int, ...]]:
    """The most that was alive without gradients of parameters; with them; and what was alive after each operation."""
    if not isinstance(trainee.net, torch._dynamo.OptimizedModule):
        memory = training_peak(trainee.step, trainee.net.parameters())
        return max(memory.activations), memory.peak, tuple(point.live for point in memory.trace)
    whole = allocator_trace(trainee.step)  # nothing compiled runs below a dispatch mode
    # Where gradients are there already, they are older than the step.
    return max(allocator_trace(lambda: trainee.step(zero_grad=False))), max(whole), tuple(whole)


def _gpu_memory(trainee: Trainee) -> tuple[int, int, tuple[int, ...]]:
    """The same, as the allocator of the GPU has it."""
    peaks = []
    for zero_grad in (True, False):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        trainee.step(zero_grad=zero_grad)
        torch.cuda.synchronize()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    if isinstance(trainee.net, torch._dynamo.OptimizedModule):
        return peaks[1], peaks[0], ()
    memory = training_peak(trainee.step, trainee.net.parameters())
    return max(memory.activations), peaks[0], tuple(point.live for point in memory.trace)


# ------------------------------------------------------------------------------------------ ways to train
Way = Callable[[nn.Module, Inputs, Options], Trainee]


def ways(options: Options) -> Iterator[tuple[str, Way]]:
    """All but backprop, by name."""
    if options.others:
        yield "checkpointed blocks", _checkpointed
        yield "checkpointed √n", _checkpointed_by_root
        yield "compiler, half", _budgeted
        yield "step in backward", _optimizer_in_backward
    for name, cuts in options.cuts.items():
        yield name, _cut(cuts, "loop")
        yield f"{name}, stepping", _cut(cuts, "segment")


def _backprop(model: nn.Module, inputs: Inputs, options: Options) -> Trainee:
    return Trainee(model, options.optimizer(model.parameters()), inputs, options)


def _checkpointed(model: nn.Module, inputs: Inputs, options: Options) -> Trainee:
    for name in blocks(model):
        _recompute(model.get_submodule(name))
    return _backprop(model, inputs, options)


def _checkpointed_by_root(model: nn.Module, inputs: Inputs, options: Options) -> Trainee:
    """Runs of about √n blocks are recomputed at a time (Chen et al. 2016, Sect. 4)."""
    names = blocks(model)
    parents = dict.fromkeys(name.rpartition(".")[0] for name in names)
    length = round(math.sqrt(len(names)))
    for parent in parents:
        container = model.get_submodule(parent)
        if not isinstance(container, nn.Sequential):
            raise DniFxError(f"the blocks in {parent or 'the model'} are not in a Sequential")
        children = list(container)
        groups = [nn.Sequential(*children[i : i + length]) for i in range(0, len(children), length)]
        for group in groups:
            _recompute(group)
        container._modules = {str(i): group for i, group in enumerate(groups)}
    return _backprop(model, inputs, options)


def _recompute(module: nn.Module) -> None:
    forward = module.forward
    module.forward = lambda *args, **kwargs: checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _budgeted(model: nn.Module, inputs: Inputs, options: Options) -> Trainee:
    """The partitioner of torch.compile, told to keep half of what it would keep."""
    from torch._functorch import config

    torch._dynamo.reset()
    on_gpu = any(p.is_cuda for p in model.parameters())
    # The kernels of eager mode, as in all other rows, where there may be no compiler.
    compiled: Any = torch.compile(model, backend="inductor" if on_gpu else "aot_eager_decomp_partition")
    trainee = _backprop(compiled, inputs, options)
    with config.patch(activation_memory_budget=0.5):
        return _prepared(trainee)


def _optimizer_in_backward(model: nn.Module, inputs: Inputs, options: Options) -> Trainee:
    """Every parameter has an optimizer of its own, which steps when its gradient is there."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_stepping(options.optimizer([parameter])))
    return Trainee(model, None, inputs, options)


def _stepping(optimizer: torch.optim.Optimizer) -> Callable[[Tensor], None]:
    def step(_: Tensor) -> None:
        optimizer.step()
        optimizer.zero_grad()

    return step


def parse_segments(text: str) -> dict[str, Cuts]:
    """What the command line means: `2,4,auto`.

    Raises:
        DniFxError: If it does not read so.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part == "auto" or (part.isdecimal() and int(part) > 1) for part in parts):
        raise DniFxError(f"--segments {text!r}: numbers of segments, 2 or more, and auto, as in 2,4,8,auto")
    return segments(*(part if part == "auto" else int(part) for part in parts))


def segments(*counts: int | str) -> dict[str, Cuts]:
    """Cuts into so many segments, or "auto"."""
    return {"auto" if count == "auto" else f"{count} segments": count for count in counts}


def _cut(cuts: Cuts, step: str) -> Way:
    def make(model: nn.Module, inputs: Inputs, options: Options) -> Trainee:
        shared: dict[str, Any] = {
            "example_kwargs": inputs.kwargs,
            "cuts": cuts,
            "synthesizer": options.synthesizer,
            "classes": options.classes,
            "synthesizer_share": 9.0 if isinstance(cuts, int) else None,  # what it costs is what is measured
            "verify": False,
        }
        if step == "segment":
            net = api.transform(model, inputs.args, optimizer=options.optimizer, step=step, **shared)
            optimizer = net.dni.optimizer
        else:
            net = api.transform(model, inputs.args, **shared)
            optimizer = options.optimizer(net.parameters())
        context = {}
        if options.classes is not None:
            first = inputs.tensors()[0]
            context["dni_context"] = torch.arange(len(first), device=first.device) % options.classes
        return Trainee(net, optimizer, Inputs(inputs.args, inputs.kwargs | context, inputs.source), options)

    return make


def blocks(model: nn.Module) -> list[str]:
    """Names of the modules that a person would checkpoint: of the class that holds most parameters, where there are
    several of it; else the children of the longest Sequential.

    Raises:
        DniFxError: If there are neither.
    """
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    by_class: dict[type[nn.Module], list[str]] = {}
    for name, module in model.named_modules():
        same = by_class.setdefault(type(module), [])
        inside = any(name.startswith(f"{other}.") for other in same)
        if name and not isinstance(module, containers) and any(True for _ in module.children()) and not inside:
            same.append(name)
    repeated = [names for names in by_class.values() if len(names) > 1]
    if repeated:
        return max(repeated, key=lambda names: sum(_size(model.get_submodule(name)) for name in names))
    sequentials = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Sequential) and len(m) > 1]
    if not sequentials:
        raise DniFxError("the model has no repeated blocks")
    name, longest = max(sequentials, key=lambda pair: len(pair[1]))
    return [f"{name}.{i}".lstrip(".") for i in range(len(longest))]


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
