"""Steps to values in a model, and a fast comparison of all values with the last seen ones."""

import copy
import sys
from array import array
from collections import UserDict, UserList, deque
from collections.abc import Mapping, Sequence
from operator import call, is_, itemgetter
from types import FunctionType, MethodType
from typing import Any

import numpy as np
from torch import nn

from dni_fx.model.attributes import at_path, has_path

__all__ = ["ABSENT", "Seen", "Step", "value_at"]

ABSENT = object()
# ("attribute", name), ("item", key), ("code", name of a method), ("cell", name of a variable in a closure),
# ("length", None), ("global", file); and ("children", None) and ("hooks", None), for the lists of their names.
Step = tuple[str, Any]
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_CHANGEABLE = (list, dict, set, deque, UserDict, UserList, array, np.ndarray)


def value_at(owner: Any, step: Step) -> Any:
    """The value of an object at a step; `ABSENT` if there is none."""
    kind, key = step
    try:
        if kind == "attribute":
            return getattr(owner, key)
        if kind == "item":
            return owner[key]
        if kind == "code":
            value = getattr(owner, key)
            return value.__func__ if isinstance(value, MethodType) else value
        if kind == "cell":
            return owner.__closure__[owner.__code__.co_freevars.index(key)].cell_contents
        if kind == "length":
            return len(owner)
        if kind == "children":
            return list(owner._modules)
        if kind == "hooks":
            return [_hook_name(hook) for held in _HOOKS for hook in getattr(owner, held).values()]
        return vars(sys.modules[key])
    except (AttributeError, LookupError, TypeError, ValueError):
        return ABSENT


def _hook_name(hook: object) -> str:
    named = hook if hasattr(hook, "__qualname__") else type(hook)
    return f"{named.__module__}.{named.__qualname__}"


class Seen:
    """The values at some places, and the objects on the ways to them, as they were when last compared.

    Args:
        places: For each value, the dotted name of its module, and the steps from there.
    """

    def __init__(self, model: nn.Module, places: Sequence[tuple[str, tuple[Step, ...]]]) -> None:
        self.model = model
        self.copies: list[tuple[Any, Any]] = []  # of lists, dicts and arrays, which may change in place
        self._objects: dict[tuple[int, Any], tuple[Any, Step, Any]] = {}  # owner, step, and the object there
        self._plain: dict[int, tuple[Mapping[Any, Any], dict[Any, Any]]] = {}  # a namespace, and its values
        self._absent: dict[int, tuple[Mapping[Any, Any], set[Any]]] = {}  # a namespace, and names that it has not
        self._methods: dict[tuple[type, str], Any] = {}
        self._instances: dict[int, Any] = {}  # whose classes have these methods
        self._dicts: dict[int, Mapping[Any, Any]] = {}  # children and hooks
        for path, steps in places:
            if has_path(model, path):
                self._add_path(path)
                self._add(at_path(model, path), steps)
        self.objects = list(self._objects.values())
        # Each first name twice: of one name, itemgetter would return the value, which may be an array, not a tuple.
        getters = [(names, itemgetter(next(iter(held)), *held), held) for names, held in self._plain.values()]
        self.plain = [(names, get, get(held)) for names, get, held in getters]
        absent = [(names, name) for names, held in self._absent.values() for name in held]
        self.lookups = [names.__contains__ for names, _ in absent]
        self.absent = [name for _, name in absent]
        self.instances = list(self._instances.values())
        self.classes = [type(instance) for instance in self.instances]
        self.method_classes, self.method_names = [c for c, _ in self._methods], [n for _, n in self._methods]
        self.methods = list(self._methods.values())
        self.empty = [names for names in self._dicts.values() if not names]
        self.filled = [(names, list(names)) for names in self._dicts.values() if names]

    def _add_path(self, path: str) -> None:
        """Add the modules on the way to a module, each of which can be replaced."""
        owner = self.model
        for name in path.split(".") if path else ():
            self._plain.setdefault(id(owner._modules), (owner._modules, {}))[1][name] = at_path(owner, name)
            owner = at_path(owner, name)

    def _add(self, owner: Any, steps: tuple[Step, ...]) -> None:
        for index, step in enumerate(steps):
            kind, key = step
            value = value_at(owner, step)
            names = _names(owner, step)
            if kind == "children":
                self._dicts[id(owner._modules)] = owner._modules
            elif kind == "hooks":
                self._dicts.update({id(hooks): hooks for hooks in (getattr(owner, held) for held in _HOOKS)})
            elif kind == "code" and isinstance(value, FunctionType) and getattr(type(owner), key, None) is value:
                self._absent.setdefault(id(vars(owner)), (vars(owner), set()))[1].add(key)
                self._methods[type(owner), key] = value
                self._instances[id(owner)] = owner
            elif index == len(steps) - 1 and names is not None and value is not ABSENT:
                self._plain.setdefault(id(names), (names, {}))[1][key] = value
            elif names is not None and value is ABSENT:
                self._absent.setdefault(id(names), (names, set()))[1].add(key)
            else:
                self._objects[id(owner), step] = owner, step, value
            if value is ABSENT:
                return
            if index == len(steps) - 1 and kind not in ("children", "hooks") and isinstance(value, _CHANGEABLE):
                self.copies.append((value, copy.deepcopy(value)))
            owner = value

    def holds(self, model: nn.Module) -> bool:
        """Whether each object is still in its place, each value equal, and each list or dict of equal content."""
        if model is not self.model or any(self.empty):
            return False
        try:
            for names, get, values in self.plain:
                if get(names) != values:
                    return False
            if not all(map(is_, map(getattr, self.method_classes, self.method_names), self.methods)):
                return False
        except (LookupError, ValueError, RuntimeError, TypeError, AttributeError):  # a value is gone, or an array now
            return False
        if [*map(type, self.instances)] != self.classes:
            return False
        if any(map(call, self.lookups, self.absent)):
            return False
        for content, keys in self.filled:
            if [*content] != keys:
                return False
        for owner, step, value in self.objects:
            now = value_at(owner, step)
            if now is not value and not (step[0] == "length" and now == value):
                return False
        return all(
            np.array_equal(value, content) if isinstance(value, np.ndarray) else value == content
            for value, content in self.copies
        )


def _names(owner: Any, step: Step) -> Mapping[Any, Any] | None:
    """The namespace in which a step looks first: a dict, or the attributes of an object; None if there is none."""
    kind, key = step
    if kind == "item":
        return owner if isinstance(owner, dict) else None
    names: dict[str, Any] | None = getattr(owner, "__dict__", None)
    if isinstance(owner, type) or kind != "attribute" or names is None:
        return None
    return names if key in names or not hasattr(owner, key) else None
