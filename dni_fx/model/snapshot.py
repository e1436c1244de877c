"""The state of a model at one time: what has changed since, and the way back."""

import itertools
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from functools import partial
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from dni_fx.errors import first_line
from dni_fx.model.saved_tensor import SavedTensor

__all__ = ["LIBRARIES", "Snapshot"]

LIBRARIES = frozenset({"torch", "builtins", "dni_fx"})  # packages whose objects and caches are left alone

_CONTAINERS = (dict, OrderedDict, defaultdict, Counter, list, set, deque)
_PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size})
_MANY = 10_000  # a container with more elements is a data set or a vocabulary, which takes long to walk


class Snapshot:
    """Every tensor and container that can be reached from some modules, with a copy of its value.

    The attributes of the modules are followed: into containers, submodules, other modules, optimizers, random
    generators, and objects whose classes are of the same packages as the modules' classes.

    Attributes:
        modules: Every module that was reached.
    """

    def __init__(self, *roots: nn.Module) -> None:
        self.modules: list[nn.Module] = []
        self._first = roots[0]
        self._tensors: dict[int, SavedTensor] = {}
        self._containers: dict[int, tuple[Any, Any]] = {}  # each with a shallow copy
        self._generators: dict[int, tuple[object, Callable[[], object]]] = {}  # each with the way back
        classes = [type(m) for root in roots for m in root.modules()]
        self._packages = {cls.__module__.partition(".")[0] for cls in classes} - LIBRARIES
        for root in roots:
            self._walk([*root.named_parameters(), *root.named_buffers(), ("", root)])
            if root is self._first:
                self._buffer_shapes = {name: b.shape for name, b in root.named_buffers()}
                buffers = {id(b) for b in root.buffers()}
                self._compared = [key for key in self._tensors if key not in buffers]

    def restore(self) -> list[str]:
        """Restore everything in place.

        Returns:
            The things that could not be restored, each with the reason.
        """
        steps: list[tuple[str, Callable[[], object]]] = []
        steps += [(type(c).__name__, partial(_refill, c, old)) for c, old in self._containers.values()]
        steps += [(f"tensor {saved.name!r}", saved.restore) for saved in self._tensors.values()]
        steps += [(type(generator).__name__, restore) for generator, restore in self._generators.values()]
        failed = []
        for name, restore in steps:
            try:
                restore()
            except Exception as error:  # the other steps must run all the same
                failed.append(f"{name}: {first_line(error)}")
        return failed

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that can be reached from the first module, without its buffers, by name."""
        return {self._tensors[key].name: self._tensors[key].tensor for key in self._compared}

    def reshaped_buffers(self) -> list[str]:
        """The names of the buffers of the first module that have another shape than before."""
        now = self._first.named_buffers()
        return [name for name, b in now if b.shape != self._buffer_shapes.get(name, b.shape)]

    def changed(self) -> dict[str, Tensor]:
        """Copies of the tensors of the first module that have changed, without its buffers.

        If the `requires_grad` of a tensor has changed, it has an entry of its own.
        """
        tensors = {key: (self._tensors[key].name, self._tensors[key].tensor) for key in self._compared}
        tensors |= {id(p): (name, p) for name, p in self._first.named_parameters()}
        found = {}
        for key, (name, tensor) in tensors.items():
            saved = self._tensors.get(key)
            if saved is None or saved.has_changed():
                found[name] = tensor.detach().clone()
            if saved is not None and tensor.requires_grad != saved.required_grad:
                found[f"requires_grad of {name}"] = torch.tensor(tensor.requires_grad)
        return found

    def _walk(self, values: list[tuple[str, Any]]) -> None:
        stack = values[::-1]
        while stack:
            name, value = stack.pop()
            if type(value) in _PLAIN:
                continue
            if isinstance(value, Tensor):
                if id(value) not in self._tensors:
                    self._tensors[id(value)] = saved = SavedTensor(name, value)
                    stack.append((f"{name}.grad", saved.grad))
            elif type(value) is tuple:
                stack += _elements(name, value)
            elif type(value) in _CONTAINERS:
                self._save_container(name, value, stack)
            elif (restore := _way_back(value)) is not None:
                self._generators.setdefault(id(value), (value, restore))
            elif isinstance(value, nn.Module) or self._is_open(type(value)):
                attributes = getattr(value, "__dict__", None)
                if isinstance(value, nn.Module) and id(attributes) not in self._containers:
                    self.modules.append(value)
                if type(attributes) is dict:
                    self._save_container(name, attributes, stack)

    def _save_container(self, name: str, container: Any, stack: list[tuple[str, Any]]) -> None:
        if id(container) not in self._containers:
            self._containers[id(container)] = container, container.copy()
            stack += _elements(name, container)

    def _is_open(self, cls: type) -> bool:
        """Whether the attributes of objects of this class are part of the model's state."""
        return cls.__module__.partition(".")[0] in self._packages or cls.__module__.startswith("torch.optim.")


def _elements(name: str, container: Any) -> Iterator[tuple[str, Any]]:
    """The elements of a container, with their paths."""
    if len(container) > _MANY:
        return
    items = container.items() if isinstance(container, dict) else enumerate(container)
    for key, value in items:
        if type(value) not in _PLAIN:
            is_kind = key in ("_parameters", "_buffers", "_modules")
            yield name if is_kind else f"{name}.{key}".lstrip("."), value


def _refill(container: Any, old: Any) -> None:
    """Give a container its old elements, if it has others."""
    if isinstance(container, dict):
        now, before = ([*itertools.chain.from_iterable(c.items())] for c in (container, old))
    else:
        now, before = list(container), list(old)
    if len(now) == len(before) and all(map(is_, now, before)):
        return
    container.clear()
    (container.extend if isinstance(container, list | deque) else container.update)(old)


def _way_back(generator: object) -> Callable[[], object] | None:
    """A function that gives a random generator its present state again; None for any other object."""
    if isinstance(generator, torch.Generator):
        state = generator.get_state()
        return lambda: generator.set_state(state)
    if isinstance(generator, random.Random):
        numbers = generator.getstate()
        return lambda: generator.setstate(numbers)
    if type(generator).__module__.startswith("numpy.random") and hasattr(generator, "bit_generator"):
        bits: Any = generator.bit_generator
        words = bits.state
        return lambda: setattr(bits, "state", words)
    return None
