"""Record the plain Python values that the model's code reads while it is traced.

A graph fixes these values: an attribute such as `self.tau`, an entry of a config, a global variable. During a trace,
`__getattribute__` of `nn.Module` and of the classes of configs records each read; dicts are replaced by copies that do.
"""

import contextlib
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import FrameType, FunctionType, MemberDescriptorType, MethodType, SimpleNamespace
from typing import Any
from unittest import mock

from torch import Tensor, nn
from torch._dynamo.callback import callback_handler

from dni_fx.capture.global_names import attribute_names, is_own, read_by_function
from dni_fx.capture.items import Items, Namespaced, Place
from dni_fx.model import Read, Step, tensors_in, text_of, value_at, value_of

__all__ = ["recorded_reads"]

_OWN = frozenset(dir(nn.Module())) - {"training"}  # attributes of every module
_LIBRARIES = frozenset({"torch", "numpy", "dni_fx", *sys.stdlib_module_names}) - {"argparse"}
_HEAP_TYPE, _IMMUTABLE = 1 << 9, 1 << 8  # flags of a class: it is made by Python code; its attributes are fixed
_MOST = 100  # the most objects in one list: the comparison of more would be slow
_DEEPEST = 8  # the most steps to a list of objects, since a list may hold itself
_CHILDREN, _HOOKS = ("children", None), ("hooks", None)

_lock = threading.RLock()  # classes are patched, so only one trace runs at a time


@contextlib.contextmanager
def recorded_reads(model: nn.Module) -> Iterator[list[Read]]:
    """A list that, after the context, holds the plain values that the model's code read and did not change."""
    found: list[Read] = []
    with _lock:
        recorder = _Recorder(model)
        try:
            yield found
        finally:
            recorder.close()
    written = recorder.written
    reads = [
        Read(module, steps, text)
        for (module, steps), text in recorder.reads.items()
        if not any((module, steps[:end]) in written for end in range(1, len(steps) + 1))
    ]
    # A cache, for one, changes. Front ends replace `forward` for the time of a trace.
    found += [r for r in reads if value_of(model, r)[1] == r.text or r.steps == (("code", "forward"),)]


class _Recorder:
    """Watches modules and configs until `close`.

    Attributes:
        reads: The text of each value at its first read; "" if there was none.
        written: The attributes that the code assigned. torch.export may set them back.
    """

    def __init__(self, model: nn.Module) -> None:
        self.reads: dict[Place, str] = {}
        self.written: set[Place] = set()
        self.model = model
        self.places: dict[int, Place] = {id(m): (name, ()) for name, m in model.named_modules()}
        self.objects: list[Any] = []  # keeps the objects of `places` alive, so that their ids stay unique
        self.copies: dict[int, tuple[Place, Any, Any]] = {}  # dicts and namespaces, and their watched copies
        self.code: dict[tuple[int, Any], tuple[nn.Module, Callable[..., Any]]] = {}  # methods that were called
        self.scanned: set[Any] = set()  # functions whose global variables are recorded
        self.patches: dict[type, Any] = {}
        self.is_paused = False
        self._watch(nn.Module)
        callback_handler.register_start_callback(self._pre_compile)
        callback_handler.register_end_callback(self._start)
        self._note(model, "forward", model.forward)

    def close(self) -> None:
        callback_handler.remove_start_callback(self._pre_compile)
        callback_handler.remove_end_callback(self._start)
        self._stop()
        for (module, steps), source, copy in self.copies.values():
            is_dict = isinstance(source, dict)
            content, new = (source, copy.plain()) if is_dict else (vars(source), vars(copy))
            kind = "item" if is_dict else "attribute"
            changed = [k for k in {**content, **new} if k not in new or k not in content or content[k] is not new[k]]
            self.written |= {(module, (*steps, (kind, key))) for key in changed}
            if changed:
                content.clear()
                content.update(new)

    def _pre_compile(self, _args: object) -> None:
        """Stop watching: torch.compile, which traces the branches of torch.cond, takes no patched classes.

        All attributes that the code of a branch may read count as read.
        """
        self._stop()
        for module, function in self.code.values():
            for name in attribute_names(function) & vars(module).keys():
                self._note(module, name, vars(module)[name])

    def _stop(self) -> None:
        for patch in reversed(self.patches.values()):
            if not self.is_paused:
                patch.__exit__(None, None, None)
        self.is_paused = True

    def _start(self, _args: object) -> None:
        for patch in self.patches.values():
            patch.__enter__()
        self.is_paused = False

    def _watch(self, cls: type) -> None:
        """Record reads of the attributes of all instances of a class that have a place."""
        original: Any = cls.__getattribute__

        def getattribute(owner: Any, name: str) -> Any:
            try:
                value = original(owner, name)
            except AttributeError:
                fallback = getattr(type(owner), "__getattr__", None)
                if fallback is None or isinstance(owner, nn.Module):
                    self._note_absent(owner, name)
                    raise
                value = fallback(owner, name)
            return value if name.startswith("__") else self._note(owner, name, value)

        def getitem(owner: Any, key: Any) -> Any:
            value = original_getitem(owner, key)
            place = self.places.get(id(owner))
            return value if place is None else self.keep((place[0], (*place[1], ("item", key))), value)

        def setattribute(owner: Any, name: str, value: Any) -> None:
            place = self.places.get(id(owner))
            if place is not None:
                self.written.add((place[0], (*place[1], ("attribute", name))))
            original_setattr(owner, name, value)

        original_setattr: Any = cls.__setattr__
        functions: dict[str, Any] = {"__getattribute__": getattribute, "__setattr__": setattribute}
        if issubclass(cls, dict):
            original_getitem: Any = cls.__getitem__
            functions["__getitem__"] = getitem
        patch = mock.patch.multiple(cls, **functions)
        with contextlib.suppress(TypeError, AttributeError):  # some classes take no new attributes
            if not self.is_paused:
                patch.__enter__()
            self.patches[cls] = patch

    def _note(self, owner: Any, name: str, value: Any) -> Any:
        """Record a read; return the value, or the watched copy of a dict."""
        place = self.places.get(id(owner))
        if place is None:
            return value
        if isinstance(owner, nn.Module):
            is_called = not str(sys._getframe(2).f_globals.get("__name__")).startswith("torch.fx.")
            if is_called and (name == "forward" or isinstance(value, MethodType)):
                self._read_code(owner, name, getattr(value, "__func__", value))
            elif name == "_modules" and _iterates(sys._getframe(2)):
                self.reads.setdefault((place[0], (*place[1], _CHILDREN)), str(list(value)))
            if name in _OWN:
                return value
        if isinstance(owner, dict) and hasattr(dict, name):  # items, get and so on: all entries count as read
            text = text_of(owner)
            if text is not None:
                self.reads.setdefault(place, text)
            return value
        if name not in getattr(owner, "__dict__", ()):
            held = next((vars(cls)[name] for cls in type(owner).__mro__ if name in vars(cls)), None)
            if hasattr(type(held), "__get__") and not isinstance(held, MemberDescriptorType):
                return value  # a method; or a property, whose own reads are recorded
        return self.keep((place[0], (*place[1], ("attribute", name))), value)

    def _note_absent(self, owner: Any, name: str) -> None:
        """Record that forward found no attribute of this name, as in `getattr(self, "flag", None)`."""
        place = self.places.get(id(owner))
        if place is None or name.startswith("__") or name in _OWN:
            return
        if isinstance(owner, nn.Module):
            has_own_fallback = type(owner).__getattr__ is not nn.Module.__getattr__
            if has_own_fallback or any(name in d for d in (owner._parameters, owner._buffers, owner._modules)):
                return
        caller = str(sys._getframe(2).f_globals.get("__name__"))
        if not caller.startswith(("torch.", "dni_fx.")) or caller.startswith("torch.nn.modules."):
            self.reads.setdefault((place[0], (*place[1], ("attribute", name))), "")

    def keep(self, place: Place, value: Any) -> Any:
        """Record a value by its place; return the value, or the watched copy of a dict."""
        if type(value) is SimpleNamespace or (type(value) is dict and not tensors_in(value)):
            made = self.copies.get(id(value))
            copy: Any = made[2] if made else Items(self, value) if type(value) is dict else Namespaced(**vars(value))
            self.copies[id(value)] = place, value, copy
            if isinstance(copy, Items):
                copy.place = place
            else:
                self._add(place, copy)
            return copy
        if not (isinstance(value, dict) and self._add(place, value)):
            self._keep_all(place, value)
        return value

    def _keep_all(self, place: Place, value: Any) -> None:
        """Record a value by its place, or what is in it; and what a function reads."""
        text = text_of(value)
        if text is not None:
            self.reads.setdefault(place, text)
        elif isinstance(value, list | tuple | deque) and len(value) < _MOST and len(place[1]) < _DEEPEST:
            self.reads.setdefault((place[0], (*place[1], ("length", None))), str(len(value)))
            for index, item in enumerate(value):
                if not isinstance(item, Tensor | nn.Module):
                    self._keep_all((place[0], (*place[1], ("item", index))), item)
        else:
            self._add(place, value)
        if isinstance(value, FunctionType) and value not in self.scanned:
            self.scanned.add(value)
            self._read_by(*place, value)

    def _add(self, place: Place, value: Any) -> bool:
        """Give an object a place, and watch its class, if it may be a config; return whether it is watched."""
        cls = type(value)
        is_fixed = not cls.__flags__ & _HEAP_TYPE or bool(cls.__flags__ & _IMMUTABLE)
        known = cls is not Namespaced and cls.__module__.split(".")[0] in _LIBRARIES
        if isinstance(value, nn.Module) or is_fixed or known:
            return False
        if id(value) not in self.places:
            self.objects.append(value)
        self.places[id(value)] = place  # of several modules that share a config, the one that has just read it
        if cls not in self.patches:
            self._watch(cls)
        return True

    def _read_code(self, module: nn.Module, name: str, function: Callable[..., Any]) -> None:
        """Record a method, the hooks of a module whose forward runs, and all that the method reads from outside."""
        if (id(module), function) in self.code or not (name == "forward" or is_own(function)):
            return
        self.code[id(module), function] = module, function
        path, text = self.places[id(module)][0], text_of(function)
        if text is not None:
            self.reads.setdefault((path, (("code", name),)), text)
        if name == "forward":
            self.reads.setdefault((path, (_HOOKS,)), str(value_at(module, _HOOKS)))
        self._read_class(module, function)
        if function not in self.scanned:
            self.scanned.add(function)
            self._read_by(path, (("code", name),), function)

    def _read_by(self, path: str, way: tuple[Step, ...], function: Callable[..., Any]) -> None:
        """Record what a function reads from outside."""
        for steps, value in read_by_function(function, way):
            self._keep_all(("" if steps[0][0] == "global" else path, steps), value)

    def _read_class(self, module: nn.Module, function: Callable[..., Any]) -> None:
        """Record the values that a method may read as `type(self).name`."""
        names = attribute_names(function)
        for name in names if names & {"type", "__class__"} else ():
            held = next((vars(cls)[name] for cls in type(module).__mro__[:-1] if name in vars(cls)), None)
            text = None if held is None or name.startswith("__") or name in _OWN or callable(held) else text_of(held)
            if text is not None and name not in vars(module):
                self.reads.setdefault((self.places[id(module)][0], (("attribute", name),)), text)


def _iterates(frame: FrameType) -> bool:
    """Whether code of the person, or a container, reads which children a module has. An index alone does not."""
    inner, caller = frame, frame.f_back
    if inner.f_code.co_name == "__getitem__" or caller is None:
        return False
    if caller.f_code.co_name == "_get_abs_string_index":
        return int(caller.f_locals["idx"]) < 0
    while str(inner.f_globals.get("__name__")) == "torch.nn.modules.module" and inner.f_back is not None:
        inner = inner.f_back
    name = str(inner.f_globals.get("__name__"))
    return name == "torch.nn.modules.container" or name.split(".")[0] not in _LIBRARIES
