"""Measure the time of every node, forward and backward, on real tensors: used in place of FLOPs."""

import bisect
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from dni_fx.graph import sequence_number
from dni_fx.model import Inputs, in_train_mode, preserved, tensors_in
from dni_fx.runtime import DecoupledModule

__all__ = ["node_times", "seconds"]

_STEPS = 7  # the first is not counted


def node_times(module: DecoupledModule, inputs: Inputs) -> dict[str, tuple[float, float]]:
    """Median seconds of the forward and of the backward pass of every node of a captured module, in train mode."""
    names = [node.name for node in module.graph.nodes]
    with preserved(module), torch.enable_grad():
        in_train_mode(module)
        module.zero_grad()  # `preserved` puts back the same tensors
        steps = [_step(module, inputs.map(lambda t: t.detach().clone()), names) for _ in range(_STEPS)]
    median = np.median(np.array(steps[1:]), axis=0)
    return {name: (float(f), float(b)) for name, f, b in zip(names, *median, strict=True)}


def seconds(run: Callable[[], Any]) -> float:
    """Median time of a call; on an accelerator, until its work is done."""
    return float(Timer("run()", globals={"run": run}).blocked_autorange(min_run_time=0.02).median)


def _step(module: DecoupledModule, inputs: Inputs, names: list[str]) -> list[list[float]]:
    """Seconds of one training step: forward by node, backward by node."""
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    index = {name: i for i, name in enumerate(names)}
    forward, backward = [0.0] * len(names), [0.0] * len(names)
    ends: list[int] = []  # autograd's sequence number at the end of each node that was stamped
    owners: list[str] = []
    last = _now(device)

    def stamp(name: str) -> None:
        nonlocal last
        forward[index[name]] += _now(device) - last
        ends.append(sequence_number())
        owners.append(name)
        last = _now(device)

    output = module.dni_run_stamped(inputs, stamp)
    roots = [t for t in tensors_in(output) if t.requires_grad]
    for node in _autograd_nodes(roots):
        owner = bisect.bisect_right(ends, node._sequence_nr())
        if owner < len(owners):
            _time_backward(node, backward, index[owners[owner]], device)
    torch.autograd.backward(roots, [torch.ones_like(t) for t in roots])
    module.zero_grad()
    return [forward, backward]


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return perf_counter()


def _time_backward(node: Any, seconds: list[float], index: int, device: torch.device) -> None:
    began = 0.0

    def before(_gradients: Any) -> None:
        nonlocal began
        began = _now(device)

    def after(_inputs: Any, _outputs: Any) -> None:
        seconds[index] += _now(device) - began

    node.register_prehook(before)
    node.register_hook(after)


def _autograd_nodes(roots: list[Tensor]) -> Iterator[Any]:
    """The nodes that the forward pass made, except the nodes that add to the gradient of a parameter."""
    stack = [t.grad_fn for t in roots if t.grad_fn is not None]
    seen = set(stack)
    while stack:
        node = stack.pop()
        yield node
        for source, _ in node.next_functions:
            if source is not None and source not in seen and not hasattr(source, "variable"):
                seen.add(source)
                stack.append(source)
