"""The ways to train that `bench` compares: backprop, checkpointing, other savers of memory, and dni-fx."""

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dni_fx.api import transform
from dni_fx.bench.options import Options, target_for
from dni_fx.cuts import Cuts
from dni_fx.errors import DniFxError, first_line
from dni_fx.model import Inputs, preserved
from dni_fx.runtime import DecoupledModule
from dni_fx.settings import loss_function

__all__ = [
    "OTHERS",
    "Trainee",
    "backprop",
    "checkpoint_blocks",
    "checkpoint_by_root",
    "context_for",
    "copied_model",
    "labels_for",
    "prepared",
    "ways",
]

OTHERS = ("checkpointed blocks", "checkpointed √n", "compiler, half", "step in backward")  # all with exact gradients
WARM_UP = 2  # steps before the first measured one: optimizer state, caches, compilers


@dataclass
class Trainee:
    """A net, and how to train it."""

    net: nn.Module
    optimizer: torch.optim.Optimizer | None  # None: the net steps in its backward pass
    inputs: Inputs
    options: Options

    def step(self, *, zero_grad: bool = True) -> None:
        """Run one training step."""
        if self.optimizer is not None and zero_grad:
            self.optimizer.zero_grad()
        output = self.net(*self.inputs.args, **self.inputs.kwargs)
        self.options.loss_of(output).backward()
        del output
        if self.optimizer is not None:
            self.optimizer.step()

    @property
    def on_gpu(self) -> bool:
        """Whether a parameter is on a CUDA device."""
        return any(p.is_cuda for p in self.net.parameters())

    def seconds(self) -> float:
        """The time of one step."""
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


def prepared(trainee: Trainee) -> Trainee:
    """Put the net into train mode, and run steps that are not measured."""
    trainee.net.train()
    for _ in range(WARM_UP):
        trainee.step()
    return trainee


Way = Callable[[nn.Module, Inputs, Options], Trainee]


def ways(options: Options) -> Iterator[tuple[str, Way]]:
    """All ways but backprop, by name."""
    if options.others:
        yield from zip(OTHERS, (_checkpointed, _checkpointed_by_root, _budgeted, _optimizer_in_backward), strict=True)
    for name, cuts in options.cuts.items():
        yield name, _cut(cuts, "loop")
        yield f"{name}, stepping", _cut(cuts, "segment")


def backprop(model: nn.Module, inputs: Inputs, options: Options) -> Trainee:
    """Train the model as it is."""
    return Trainee(model, options.optimizer(model.parameters()), inputs, options)


def _checkpointed(model: nn.Module, inputs: Inputs, options: Options) -> Trainee:
    """Recompute every block in the backward pass."""
    checkpoint_blocks(model)
    return backprop(model, inputs, options)


def checkpoint_blocks(model: nn.Module) -> None:
    """Let the backward pass compute the activations of every block again.

    Raises:
        DniFxError: If the model has no repeated blocks.
    """
    for name in blocks(model):
        _recompute(model.get_submodule(name))


def _checkpointed_by_root(model: nn.Module, inputs: Inputs, options: Options) -> Trainee:
    """Recompute runs of about √n blocks in the backward pass."""
    checkpoint_by_root(model)
    return backprop(model, inputs, options)


def checkpoint_by_root(model: nn.Module) -> None:
    """Let the backward pass compute the activations of runs of about √n blocks again (Chen et al. 2016, Sect. 4).

    Raises:
        DniFxError: If the model has no repeated blocks in a Sequential.
    """
    names = blocks(model)
    parents = dict.fromkeys(name.rpartition(".")[0] for name in names)
    length = round(math.sqrt(len(names)))
    containers: list[nn.Sequential] = []  # all, before the first is changed
    for parent in parents:
        container = model.get_submodule(parent)
        if not isinstance(container, nn.Sequential):
            raise DniFxError(f"the blocks in {parent or 'the model'} are not in a Sequential")
        containers.append(container)
    for container in containers:
        children = list(container)
        groups = [nn.Sequential(*children[i : i + length]) for i in range(0, len(children), length)]
        for group in groups:
            _recompute(group)
        container._modules = {str(i): group for i, group in enumerate(groups)}


def _recompute(module: nn.Module) -> None:
    forward = module.forward
    module.forward = lambda *args, **kwargs: checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _budgeted(model: nn.Module, inputs: Inputs, options: Options) -> Trainee:
    """Let torch.compile keep half of the activations that it would keep by itself."""
    from torch._functorch import config

    torch._dynamo.reset()
    on_gpu = any(p.is_cuda for p in model.parameters())
    # Without a GPU there may be no C++ compiler: this backend runs the kernels of eager mode, as all other rows do.
    compiled: Any = torch.compile(model, backend="inductor" if on_gpu else "aot_eager_decomp_partition")
    trainee = backprop(compiled, inputs, options)
    with config.patch(activation_memory_budget=0.5):
        return prepared(trainee)


def _optimizer_in_backward(model: nn.Module, inputs: Inputs, options: Options) -> Trainee:
    """Give every parameter an optimizer of its own, which steps as soon as the gradient is computed."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_stepping(options.optimizer([parameter])))
    return Trainee(model, None, inputs, options)


def _stepping(optimizer: torch.optim.Optimizer) -> Callable[[Tensor], None]:
    def step(_: Tensor) -> None:
        optimizer.step()
        optimizer.zero_grad()

    return step


def _cut(cuts: Cuts, step: str) -> Way:
    """Train what `dni_fx.transform` makes of the model."""

    def make(model: nn.Module, inputs: Inputs, options: Options) -> Trainee:
        shared: dict[str, Any] = {
            "example_kwargs": inputs.kwargs,
            "cuts": cuts,
            "synthesizer": options.synthesizer,
            "classes": options.classes,
            "context_size": options.context_size,
            "loss": options.training_loss,
            "training": options.training,
            "frontend": options.frontend,
            "state": options.state,
            # No real limit for a number of segments: the row shows what synthesizers cost.
            "synthesizer_share": 9.0 if isinstance(cuts, int) else None,
            "verify": False,
        }
        own: torch.optim.Optimizer | None = None
        if step == "segment":
            shared |= {"optimizer": options.optimizer, "step": step}
        elif options.training.needs_optimizer:
            shared["optimizer"] = own = options.optimizer(model.parameters())
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "the net has no cuts")  # there is nothing to measure
            net = transform(model, inputs.args, **shared)
        optimizer = own or net.dni.optimizer or options.optimizer(net.parameters())
        target = labels_for(inputs, options.classes)
        if options.context_size is not None:
            first = inputs.tensors()[0]
            target = torch.zeros(len(first), options.context_size, device=first.device)
        if options.training_loss is not None:
            with torch.no_grad(), preserved(model):
                target = target_for(loss_function(options.training_loss), model(*inputs.args, **inputs.kwargs))
        kwargs = inputs.kwargs | context_for(net, target)
        return Trainee(net, optimizer, Inputs(inputs.args, kwargs, inputs.source), options)

    return make


def context_for(net: nn.Module, target: Any) -> dict[str, Any]:
    """The argument `dni_context` of a net that takes one, where there is a target."""
    takes = isinstance(net, DecoupledModule) and net.dni_takes_context()
    return {"dni_context": target} if takes and target is not None else {}


def labels_for(inputs: Inputs, classes: int | None) -> Tensor | None:
    """Made up labels for the samples in the first input; None without classes."""
    first = inputs.tensors()[0]
    return None if classes is None else torch.arange(len(first), device=first.device) % classes


def copied_model(model: nn.Module) -> nn.Module:
    """A copy, to train.

    Raises:
        DniFxError: If the model cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:  # the person's code may raise any error
        raise DniFxError(f"the model cannot be copied, so nothing can be compared: {first_line(error)}") from None


def blocks(model: nn.Module) -> list[str]:
    """Names of the modules that a person would checkpoint.

    These are the instances of one class, if a class has several: of such classes, the one with most parameters. Else
    they are the children of the longest Sequential.

    Raises:
        DniFxError: If no class has several instances, and there is no Sequential.
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
