"""Look at a person's model without changing it."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["preserved"]


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Undo, at the end, whatever a run or a trace did to the model's attributes, buffers, gradients and the RNG.

    Values of parameters are not copied: nothing here runs an optimizer.
    """
    original = model.__dict__.get("dni_original")  # a rewritten model may run the one it was made from
    modules = [*model.modules(), *([original] if original is not None else [])]
    attributes = [dict(m.__dict__) for m in modules]
    registries = [{k: dict(v) for k, v in a.items() if type(v) in (dict, OrderedDict)} for a in attributes]
    buffers: list[tuple[Tensor, Tensor, bool]] = [(b, b.detach().clone(), b.requires_grad) for b in model.buffers()]
    grads = [(p, p.grad) for p in model.parameters()]
    devices = [p.device for p in model.parameters() if p.device.type == "cuda"]
    try:
        with torch.random.fork_rng(devices=sorted({d.index for d in devices})):
            yield
    finally:
        for module, saved, dicts in zip(modules, attributes, registries, strict=True):
            module.__dict__.clear()
            module.__dict__.update(saved)
            for name, content in dicts.items():
                held = saved[name]
                held.clear()
                held.update(content)
        with torch.no_grad():
            for buffer, value, tracked in buffers:
                if buffer.requires_grad and not tracked:  # something that carries gradient was written to it
                    buffer.detach_()
                buffer.copy_(value)
        for parameter, grad in grads:
            parameter.grad = grad
